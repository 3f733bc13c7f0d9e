"""Reinforcement learning: online, offline, and from one to the other."""

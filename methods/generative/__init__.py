"""Generative models and their samplers."""

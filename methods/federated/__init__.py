"""Federated learning: clients that share what they learn, not their data."""

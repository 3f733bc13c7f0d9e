"""Optimisers, curvature and approximate inference."""

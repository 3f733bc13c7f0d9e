"""Inference over runs and test examples: mixed-effects models, likelihood-ratio tests, variance components.

``analyse`` (in ``runner.statistics.analysis``) takes a long table of scores, one row a system, run and test example.
"""

"""Inference over runs and test examples: mixed-effects models, likelihood-ratio tests, variance components.

``analyse`` takes a long table of scores, one row a system, run and test example. Light: pandas is not imported.
"""

from runner.statistics.analysis import Analysis, analyse

__all__ = ["Analysis", "analyse"]

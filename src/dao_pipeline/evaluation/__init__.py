"""Matching, metrics and baselines."""

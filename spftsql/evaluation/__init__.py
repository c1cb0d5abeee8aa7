"""Benchmarks, metrics and scoring: how well a model or a file of predictions answers questions."""

"""Masked training on real data, and what a step costs: ``python -m examples.demo``."""

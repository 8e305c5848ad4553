"""Trains the model that ships with Themis: run ``python -m train`` from ``plugins/tiny_model``."""

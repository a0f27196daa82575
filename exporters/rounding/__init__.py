"""Weights -> codes, rounded against what the model reads."""

"""Thresholds -> pass or fail."""

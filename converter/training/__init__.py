"""Factors trained on calibration text."""

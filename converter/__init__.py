"""Checkpoint -> calibration statistics -> rank plan -> factored checkpoint."""

"""Calibration text -> windows, moments, gradients and sensitivities of the dense model."""

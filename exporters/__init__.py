"""Factored checkpoint -> artifact that a runtime on a device loads."""

"""Texts as people have them, for calibration and evaluation alike."""

"""Graphs traced from PyTorch, for families that the builder lacks."""

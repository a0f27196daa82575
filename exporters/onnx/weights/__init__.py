"""Weights of a graph: types, codes and where they are stored."""

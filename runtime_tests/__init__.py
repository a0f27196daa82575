"""Artifact -> report: perplexity, parity, speed and gates in the real runtimes."""

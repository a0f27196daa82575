"""A size in, the best model of that size out: which form every matrix of a model takes under a budget of bytes."""

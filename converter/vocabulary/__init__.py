"""A smaller vocabulary: which tokens are kept, and the model folder without the others."""

"""Recipe and model -> ranks, and the memory of every stage, before any work."""

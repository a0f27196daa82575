"""A language model on disk -> its family, its config, its blocks one at a time."""

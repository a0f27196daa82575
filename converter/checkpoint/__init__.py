"""The factored checkpoint: its folder, the modules that stand for its linears, its place in transformers."""

"""The runtimes behind one small protocol."""

"""Compress a language model with AdaSVD, export it to GGUF and ONNX, and prove that it still works."""

__version__ = "0.1.0"

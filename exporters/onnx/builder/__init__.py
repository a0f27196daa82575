"""Graphs from ONNX Runtime GenAI's model builder."""

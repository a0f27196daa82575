"""An ONNX folder held against its checkpoint, and before a runtime loads it."""

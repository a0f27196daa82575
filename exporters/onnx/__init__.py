"""ONNX: the folder ONNX Runtime and ONNX Runtime GenAI load."""

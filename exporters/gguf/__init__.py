"""GGUF: the file llama.cpp loads."""

"""The low-rank patch for llama.cpp and its builder."""

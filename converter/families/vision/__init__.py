"""Vision-language models: what is known of each, as data; their language models are families of their own."""

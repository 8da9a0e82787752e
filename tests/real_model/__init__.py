"""A real language model through the real daemon and the real vLLM."""

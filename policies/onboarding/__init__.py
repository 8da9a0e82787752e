"""What `palorad init` decides: what a model knows, where a question goes, what a suite sees."""

"""The durability checks without bounds: `python -m benchmarks.durability [--parts crash power …]`."""

"""The durability checks without bounds, as `python -m benchmarks.durability` runs them."""

"""Runs the parts asked for and merges their figures into benchmarks/results/durability.json."""

from __future__ import annotations

from benchmarks import parts

PARTS = ("crash", "power", "faults", "fuzz", "mutants", "soak")

if __name__ == "__main__":
    parts.main("durability", __doc__, PARTS)

"""Runs the parts asked for and merges their figures into benchmarks/results/scale.json."""

from __future__ import annotations

from benchmarks import parts

PARTS = ("memory", "padding", "rivals", "processes", "nodes", "replicas", "gate_cost")

if __name__ == "__main__":
    parts.main("scale", __doc__, PARTS)

"""The promises of docs/guarantees.md under crashes, power cuts, faults, clocks and strangers."""

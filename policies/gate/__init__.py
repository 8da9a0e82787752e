"""The gate's decisions: grading, paired tests, limits, the verdict; pure functions."""

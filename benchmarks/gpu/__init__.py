"""What palorad takes on one GPU at real size, with random weights: time, memory, correctness."""

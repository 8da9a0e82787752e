"""What real size takes: memory, padding, step time beside rivals, processes, nodes, replicas."""

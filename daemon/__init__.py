"""The long-running process: files, network, database, clock and signals."""

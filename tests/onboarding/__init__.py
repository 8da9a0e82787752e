"""From a model to a folder in which the daemon can start."""

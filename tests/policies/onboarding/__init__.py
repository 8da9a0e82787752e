"""What `palorad init` decides, without a model."""

"""The real model's package and the skill that it is taught."""

"""A disk of its own for a state directory: it loses what was not synced, and fails when told to."""

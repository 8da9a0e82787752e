"""The small model that palorad is shown on: its generated text, its making, its measure."""

"""A real language model at hand: SmolLM2-135M-Instruct, and a fine-tune with a skill to lose."""

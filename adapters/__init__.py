"""Learning: the only place for torch, transformers and peft."""

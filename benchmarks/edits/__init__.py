"""Public sets of edits, learnt as streams of batches by a real language model."""

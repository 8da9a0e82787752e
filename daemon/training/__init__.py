"""The training child, its messages, and paraphrases by the live model.

Touches work folders and the adapter store; the numerics are in `adapters`.
"""

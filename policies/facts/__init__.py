"""What a line means: admission, paraphrases, supersession, what is held out; pure functions."""

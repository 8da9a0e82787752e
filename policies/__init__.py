"""Decisions: pure functions over frozen records; no torch, no files, no clock."""

"""Backups of the state directory, and the removal of what need not be kept.

Touches the ledger, files below the state directory, and the backup's directory.
"""

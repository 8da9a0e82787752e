"""Read-only JSON of what is durably true, for commands and pages.

Reads the ledger; changes nothing.
"""

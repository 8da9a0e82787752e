"""Asks the alias all day whether it still answers as the gate found.

Touches the ledger, the suites' files and the servers.
"""

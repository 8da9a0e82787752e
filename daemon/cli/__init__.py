"""Commands: parse arguments, call the daemon or read its ledger, print.

No decisions of their own; nothing else in daemon imports them.
"""

"""Files and feeds become facts in the ledger, or lines in quarantine.

Touches the inbox, the archive, the network and the ledger.
"""

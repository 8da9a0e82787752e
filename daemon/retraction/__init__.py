"""From a retraction to its certificate: unload, erase, verify, certify.

Touches the ledger, files below the state directory, and servers.
"""

"""Whether everything durable still is what was written, and the server answers accordingly.

Reads the ledger, files below the state directory and servers; writes the signed head only.
"""

"""palorad's own small HTTP server, for a host without vLLM.

Touches adapters and one socket; never the ledger.
"""

"""Tells a webhook what happens: messages, their signature, their delivery, and trouble that lasts.

Touches the ledger's outbox, the signing key and the network.
"""

"""The operator's page: HTML and JSON of what views say, and the commands of the control socket.

Reads the ledger by connections of its own, in a thread of its own; changes go through commands.
"""

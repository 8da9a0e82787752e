"""What programs use: submit facts, wait for the verdict, ask, and read what palorad knows.

Reads the settings and the ledger; asks the daemon over its socket, and the server.
"""

from daemon.client.client import Answer, Client, Submitted, WaitedTooLong

__all__ = ["Answer", "Client", "Submitted", "WaitedTooLong"]

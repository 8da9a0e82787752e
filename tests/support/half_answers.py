"""A proxy before a server that breaks off answers in the middle while a file says so."""

from __future__ import annotations

import socket
import threading
from pathlib import Path


def serve(listening: socket.socket, port: int, broken: Path) -> None:
    """Pass connections on to `port`; while `broken` exists each answer ends halfway. Never ends."""
    while True:
        client, _ = listening.accept()
        threading.Thread(target=_pass_on, args=(client, port, broken), daemon=True).start()


def _pass_on(client: socket.socket, port: int, broken: Path) -> None:
    try:
        with client, socket.create_connection(("127.0.0.1", port)) as server:
            asking = threading.Thread(target=_copy, args=(client, server), daemon=True)
            asking.start()
            while data := server.recv(1 << 16):
                if broken.exists():
                    client.sendall(data[: len(data) // 2])
                    break
                client.sendall(data)
            # Closing alone would not end what the other thread still reads from.
            client.shutdown(socket.SHUT_RDWR)
            server.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return

"""A receiver of webhooks that takes, refuses, hangs, breaks off or is slow, as it is told."""

from __future__ import annotations

import json
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

from daemon.notification import messages

OK = b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n"
ANSWERS = {
    "ok": OK,
    "500": b"HTTP/1.1 500 Oh\r\ncontent-length: 2\r\n\r\nno",
    "410": b"HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n",
    "redirect": b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
    "half": b"HTTP/1.1 20",
    "nonsense": b"\x00\x01 hello\r\n\r\n",
    "reset": b"",
}
SLOW_S = 0.6


@dataclass(frozen=True)
class Post:
    """One request as it arrived, and how it was answered."""

    headers: dict[str, str]
    content: bytes
    answered: str

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def told(self) -> dict[str, Any]:
        return dict(json.loads(self.content))

    def is_signed(self, key: bytes) -> bool:
        """Checked as a receiver would, with nothing of palorad but the key."""
        signed = f"{self.id}.{self.headers['webhook-timestamp']}.".encode() + self.content
        import base64
        import hashlib
        import hmac

        mac = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        return self.headers["webhook-signature"] == f"v1,{mac}"


class Receiver:
    """Listens in threads of the test; `faults` are used up one a request, then all is well."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.posts: list[Post] = []
        self.port = 0
        self._open: socket.socket | None = None
        self.open()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?secret=hush"

    def open(self) -> None:
        """Listen, on the port of before."""
        self._open = socket.socket()
        self._open.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._open.bind(("127.0.0.1", self.port))
        self._open.listen(16)
        self.port = self._open.getsockname()[1]
        threading.Thread(target=self._listen, args=(self._open,), daemon=True).start()

    def close(self) -> None:
        """Refuse connections."""
        if self._open is not None:
            self._open.shutdown(socket.SHUT_RDWR)
            self._open.close()
            self._open = None

    def _listen(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            request = _read(connection)
            if request is None:
                return
            fault = self.faults.pop(0) if self.faults else "ok"
            self.posts.append(Post(*request, fault))
            if fault == "hang":
                connection.settimeout(30)
                connection.recv(1)
                return
            if fault == "slow":
                time.sleep(SLOW_S)
            try:
                connection.sendall(ANSWERS.get(fault, OK))
            except OSError:
                return

    def types(self) -> list[str]:
        """What was told, each event once, in the order of its first arrival."""
        return [post.told["type"] for post in self.first()]

    def first(self) -> list[Post]:
        """Each event's first arrival."""
        found: dict[str, Post] = {}
        for post in self.posts:
            found.setdefault(post.id, post)
        return list(found.values())

    def held(self, key: bytes) -> None:
        """What a receiver may rely on: all signed, and never an earlier one after a later one."""
        assert all(post.is_signed(key) for post in self.posts)
        ids = [post.id for post in self.posts]
        assert ids == sorted(ids)


def _read(connection: socket.socket) -> tuple[dict[str, str], bytes] | None:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return None
        data += piece
    head, _, content = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")[1:]
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    while len(content) < int(headers.get("content-length", 0)):
        content += connection.recv(65536)
    return headers, content


def read_key(text: str) -> bytes:
    """The key of `webhook.key`."""
    return messages.key_of(text.strip())

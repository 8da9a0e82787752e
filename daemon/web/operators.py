"""Who may change something: whoever has the operator token, and the session that it opens."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fastapi import Request

from policies.errors import RequestRefused

COOKIE: Final = "palorad_operator"
SESSION_S: Final = 12 * 3600
CSRF_HEADER: Final = "x-palorad-csrf"


class NotAllowed(RequestRefused):
    """A change without the operator token, or without the session's own proof."""


@dataclass(frozen=True, slots=True)
class OperatorSession:
    """A browser that has given the token; `csrf` is what only the page itself can know."""

    csrf: str


class Operators:
    """Opens and knows sessions; `key` gives the operator token, `clock` seconds since 1970."""

    def __init__(self, key: Callable[[], str], clock: Callable[[], float]) -> None:
        self._key = key
        self._clock = clock

    def open(self, token: str) -> str:
        """The cookie's value for whoever has the token; raises `NotAllowed`."""
        if not self._is_token(token):
            raise NotAllowed("that is not the operator token; it is in operator.key in state_dir")
        body = f"{int(self._clock()) + SESSION_S}.{secrets.token_hex(16)}"
        return f"{body}.{self._mac('session', body)}"

    def session(self, request: Request) -> OperatorSession | None:
        """The session of a request's cookie, if it is one of ours and has not run out."""
        body, _, mac = request.cookies.get(COOKIE, "").rpartition(".")
        until = body.partition(".")[0]
        if not hmac.compare_digest(mac.encode(), self._mac("session", body).encode()):
            return None
        if not until.isdigit() or int(until) < self._clock():
            return None
        return OperatorSession(csrf=self._mac("csrf", body))

    def require(self, request: Request, csrf: str = "") -> None:
        """Pass whoever gives the token as a bearer, or a session with its own proof.

        The proof stands in a form's field or in the header; raises `NotAllowed`.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            if self._is_token(token.strip()):
                return
            raise NotAllowed("that is not the operator token; it is in operator.key in state_dir")
        session = self.session(request)
        if session is None:
            raise NotAllowed("sign in with the operator token to change something")
        given = csrf or request.headers.get(CSRF_HEADER, "")
        if not hmac.compare_digest(given.encode(), session.csrf.encode()):
            raise NotAllowed("the form is from another session: load the page again")

    def mark(self, line: str) -> str:
        """What shows that a line in an address is the page's own, not somebody else's link."""
        return self._mac("line", line)[:32]

    def _is_token(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self._key().encode())

    def _mac(self, what: str, body: str) -> str:
        return hmac.new(self._key().encode(), f"{what}:{body}".encode(), hashlib.sha256).hexdigest()

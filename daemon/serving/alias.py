"""ASGI middleware: one stable model name in front of immutable revisions, and a guarded gateway.

Self-contained (standard library only): it is copied into vLLM's PYTHONPATH and named there with
`vllm serve --middleware palorad_alias.AliasMiddleware`; the embedded server uses it from here.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import random
import re
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
Parsed = TypeVar("Parsed")

OPEN = frozenset({"/health", "/ping", "/version", "/palorad/ready", "/palorad/hello"})
READ = frozenset({"/v1/models"})
GENERATE = frozenset(
    {
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/embeddings",
        "/tokenize",
        "/detokenize",
    }
)
LOADING = {
    "/v1/load_lora_adapter": ("lora_name", "lora_path"),
    "/adapters": ("name", "src"),
}
PINNED = re.compile(r"palora-([0-9]{6,12})-[0-9a-f]{8}\Z")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
CANARY = b"x-palorad-canary"
ALWAYS, NEVER = b"always", b"never"
OURS = frozenset({b"x-palorad-admin-key", b"x-palorad-signed"})
NONCE = re.compile(rb"[0-9a-f]{32,64}\Z")
ASLEEP = "this server sleeps while palorad trains; try again"
ASLEEP_RETRY_S = 5
MODEL_PAGE = re.compile(r"/v1/models/[A-Za-z0-9._-]{1,128}\Z")
# What a body is made of as far as its top level matters: strings and brackets; a lone quotation
# mark begins a string that does not end. Possessive, or a long string would fill the memory.
PIECES = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["{}\[\]]', re.DOTALL)
COLON = re.compile(rb"[ \t\r\n]*+:[ \t\r\n]*+")
MOST_PIECES = 500_000
LONGEST_NAME = 256
BODY_S = 30.0
SMALL_BODY = 64 * 1024
LARGE_BODIES = 4


class Refused(Exception):
    """An answer that the middleware gives itself; a 503 says to try again after `retry_s`."""

    def __init__(self, status: int, message: str, retry_s: int = 1) -> None:
        self.status = status
        self.message = message
        self.retry_s = retry_s
        super().__init__(message)


@dataclass(frozen=True)
class AdminGateway:
    """Where the middleware finds what it needs; `max_body` in bytes."""

    pointer: Path
    admin_key: Path
    served: Path
    user_key: Path | None = None
    max_body: int = 16 * 1024 * 1024

    @classmethod
    def from_environment(cls) -> AdminGateway:
        """PALORAD_ALIAS_FILE and PALORAD_ADMIN_KEY_FILE are needed, the rest has defaults."""
        missing = [
            name
            for name in ("PALORAD_ALIAS_FILE", "PALORAD_ADMIN_KEY_FILE")
            if not os.environ.get(name)
        ]
        if missing:
            raise RuntimeError(f"palorad's middleware needs {' and '.join(missing)} to be set")
        pointer = Path(os.environ["PALORAD_ALIAS_FILE"])
        user = os.environ.get("PALORAD_USER_KEY_FILE")
        return cls(
            pointer=pointer,
            admin_key=Path(os.environ["PALORAD_ADMIN_KEY_FILE"]),
            served=Path(os.environ.get("PALORAD_SERVED_DIR") or pointer.parent / "served"),
            user_key=Path(user) if user else None,
            max_body=int(os.environ.get("PALORAD_MAX_BODY_BYTES") or cls.max_body),
        )


@dataclass(frozen=True)
class ServedCanary:
    """A revision that answers a share of the requests, from 0 to 1, before it may take all."""

    model: str
    revision: int
    share: float


@dataclass(frozen=True)
class ServedPointer:
    """What the stable name stands for; `revision` 0 is the bare base."""

    alias: str
    model: str
    revision: int
    canary: ServedCanary | None = None


class _File(Generic[Parsed]):
    """A small file, read again only when it is another one or has changed."""

    def __init__(self, path: Path, parse: Callable[[bytes], Parsed]) -> None:
        self.path = path
        self._parse = parse
        self._stamp: tuple[int, int, int] | None = None
        self._value: Parsed | None = None

    def read(self) -> Parsed:
        """The parsed content; `Refused` 503 when it cannot be had."""
        try:
            stat = self.path.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if self._value is None or stamp != self._stamp:
                self._value = self._parse(self.path.read_bytes())
                self._stamp = stamp
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._value = None
            raise Refused(503, f"{self.path.name} cannot be read: {error}") from error
        return self._value


def _pointer(raw: bytes) -> ServedPointer:
    value = json.loads(raw)
    alias, model, revision = value["alias"], value["model"], value["revision"]
    if not (isinstance(alias, str) and alias and isinstance(model, str) and model):
        raise ValueError("alias and model must be names")
    if not isinstance(revision, int) or isinstance(revision, bool) or revision < 0:
        raise ValueError("revision must be a number from 0")
    tried = value.get("canary")
    canary = tried and ServedCanary(
        str(tried["model"]), int(tried["revision"]), float(tried["share"])
    )
    return ServedPointer(alias, model, revision, canary or None)


def _key(raw: bytes) -> bytes:
    key = raw.strip()
    if len(key) < 8:
        raise ValueError("a key has at least 8 characters")
    return key


@dataclass
class _Routed:
    """Who answers a user's request; `pointer` where the alias was asked."""

    model: str
    revision: int | None = None
    pointer: ServedPointer | None = None
    tally: _Tally | None = None


@dataclass
class _Tally:
    """What one revision answered of the alias's requests while there is a canary: all of them,
    those that failed, and the seconds that the others took, summed, and summed as squares."""

    requests: int = 0
    failed: int = 0
    seconds: float = 0.0
    squares: float = 0.0

    def add(self, seconds: float, failed: bool) -> None:
        self.requests += 1
        self.failed += failed
        if not failed:
            self.seconds += seconds
            self.squares += seconds**2


@dataclass
class _State:
    """What one server process knows: gone with it, so that nothing unverified is routed.

    `boot` names the process to whoever signs requests to it. `in_flight` counts requests by pinned
    revision, all others under ""; `answered` counts those that had an answer, until the revision
    is unloaded; `arriving` are bytes of bodies that are being read. `asleep` holds from the
    request to sleep until the server has woken. `traffic` counts, by revision, what the alias was
    asked since `canary` is the canary.
    """

    boot: str = field(default_factory=lambda: secrets.token_hex(16))
    instance_id: str = field(default_factory=lambda: secrets.token_hex(8))
    verified: set[str] = field(default_factory=set)
    in_flight: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    arriving: int = 0
    canary: str = ""
    traffic: dict[str, _Tally] = field(default_factory=dict)
    asleep: bool = False
    wakes: int = 0
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def fall_asleep(self) -> None:
        """Nothing new is let in, and what was verified before counts no more: memory is given
        back and filled again, as in a new process."""
        self.asleep = True
        self.verified.clear()
        self.instance_id = secrets.token_hex(8)

    def tally(self, canary: str, model: str) -> _Tally:
        """What `model` answered since there is this canary."""
        if self.canary != canary:
            self.canary = canary
            self.traffic = {}
        return self.traffic.setdefault(model, _Tally())

    async def drained(self) -> None:
        """Return once no request is under way; `Refused` 409 if the server is woken before."""
        wakes = self.wakes
        while self.wakes == wakes and self.in_flight.total():
            self.news = asyncio.Event()
            await self.news.wait()
        if self.wakes != wakes:
            raise Refused(409, "woken before it slept")


class AliasMiddleware:
    """Routes the stable name to the revision of the pointer file and guards the admin routes.

    A revision is routed only after `POST /palorad/verified` named it to this very process.
    """

    def __init__(
        self,
        app: App,
        gateway: AdminGateway | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`draw` decides, from 0 to 1, whether a request is the canary's."""
        self.app = app
        self._draw = draw
        self.gateway = gateway or AdminGateway.from_environment()
        self.state = _State()
        self._pointer = _File(self.gateway.pointer, _pointer)
        self._admin_key = _File(self.gateway.admin_key, _key)
        self._user_key = _File(self.gateway.user_key, _key) if self.gateway.user_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            await self._http(scope, receive, send)
        except Refused as refused:
            error = _error(refused.status, refused.message)
            await _answer(send, refused.status, error, refused.retry_s)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = _route(scope), scope["method"]
        if path in OPEN and method in {"GET", "HEAD", "POST"}:
            if path == "/palorad/ready":
                await self._ready(send)
            elif path == "/palorad/hello":
                await self._hello(scope, send)
            else:
                await self.app(scope, receive, send)
        elif method == "OPTIONS" and (path in GENERATE or path in READ):
            await self.app(scope, receive, send)
        elif method in {"GET", "HEAD"} and (path in READ or MODEL_PAGE.match(path)):
            self._require_user(scope)
            await self._models(scope, receive, send, listing=path in READ)
        elif method == "POST" and path in GENERATE:
            await self._generate(scope, receive, send, admin=self._require_user(scope))
        else:
            self._require_admin(scope)
            await self._admin(path, method, scope, receive, send)

    # --- keys ---------------------------------------------------------------------------------

    async def _hello(self, scope: Scope, send: Send) -> None:
        """Show that this process has the admin key, before anything is entrusted to it."""
        nonce = _header(scope, b"x-palorad-nonce") or b""
        if not NONCE.match(nonce):
            raise Refused(400, "x-palorad-nonce must be 32 to 64 hexadecimal digits")
        shown = proof(self._admin_key.read(), self.state.boot, nonce.decode())
        await _answer(send, 200, _json({"boot": self.state.boot, "proof": shown}))

    def _is_admin(self, scope: Scope) -> bool:
        offered = [_header(scope, b"x-palorad-admin-key"), _bearer(scope)]
        signed = _header(scope, b"x-palorad-signed")
        if not signed and not any(offered):
            return False
        expected = self._admin_key.read()
        if signed:
            query = scope.get("query_string", b"")
            target = _route(scope) + ("?" + query.decode("latin-1") if query else "")
            digest = signed[:64].decode("latin-1")
            known = _signed(expected, self.state.boot, scope["method"], target, digest)
            return hmac.compare_digest(signed, known.encode("latin-1"))
        return any(hmac.compare_digest(key, expected) for key in offered if key)

    def _require_admin(self, scope: Scope) -> None:
        if not self._is_admin(scope):
            if _bearer(scope) or any(key in OURS for key, _ in scope["headers"]):
                raise Refused(403, "this route needs palorad's admin key")
            raise Refused(401, "this route needs palorad's admin key; none was given")

    def _require_user(self, scope: Scope) -> bool:
        """Whether the admin key was given; `Refused` 401 when no key fits and one is needed."""
        if self._user_key is not None:
            expected, offered = self._user_key.read(), _bearer(scope)
            if offered and hmac.compare_digest(offered, expected):
                return False
            if not self._is_admin(scope):
                raise Refused(401, "Unauthorized: give the key as 'Authorization: Bearer KEY'")
            return True
        return any(key in OURS for key, _ in scope["headers"]) and self._is_admin(scope)

    # --- user routes --------------------------------------------------------------------------

    async def _generate(self, scope: Scope, receive: Receive, send: Send, admin: bool) -> None:
        raw = await self._body(scope, receive)
        if raw is None:
            return
        self._require_awake()
        routed, body = self._routed(raw, admin, _header(scope, CANARY))
        del raw
        scope = {**scope, "headers": _with_length(scope["headers"], len(body))}
        again = _replay(body, receive)
        del body
        counted = routed.model if PINNED.match(routed.model) else ""
        self.state.in_flight[counted] += 1
        answer, began = _Answer(routed, send), time.monotonic()
        try:
            await self.app(scope, again, answer)
            if routed.tally is not None and answer.begun and not 400 <= answer.status < 500:
                routed.tally.add(time.monotonic() - began, answer.status >= 500)
        except Exception:
            if routed.tally is not None:
                routed.tally.add(0.0, failed=True)
            raise
        finally:
            # A name that is not loaded is refused: so nobody fills this with names.
            if answer.status < 400:
                self.state.answered[counted] += 1
            self.state.in_flight[counted] -= 1
            if not self.state.in_flight[counted]:
                del self.state.in_flight[counted]
            self.state.news.set()

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body, None when the client has gone.

        `Refused` 413 when it is too large, 408 when it takes too long, 503 while others fill what
        is set aside for large bodies, 403 when it is not the one that was signed.
        """
        limit, state = self.gateway.max_body, self.state
        too_large = Refused(413, f"the body is larger than {limit} bytes")
        stated = _header(scope, b"content-length") or b"0"
        if not stated.isdigit() or len(stated) > 18:
            raise Refused(400, "content-length is no number")
        if int(stated) > limit:
            raise too_large
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(BODY_S):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    state.arriving += len(part)
                    body += part
                    if len(body) > limit:
                        raise too_large
                    if len(body) > SMALL_BODY and state.arriving > LARGE_BODIES * limit:
                        raise Refused(503, "too many large bodies arrive at once; try again")
                    more = message.get("more_body", False)
        except TimeoutError:
            raise Refused(408, f"the body did not arrive within {BODY_S:g} s") from None
        finally:
            state.arriving -= len(body)
        signed = _header(scope, b"x-palorad-signed")
        if signed and signed[:64] != hashlib.sha256(body).hexdigest().encode():
            raise Refused(403, "the body is not the one that was signed")
        return bytes(body)

    def _require_awake(self) -> None:
        if self.state.asleep:
            raise Refused(503, ASLEEP, ASLEEP_RETRY_S)

    def _routed(self, raw: bytes, admin: bool, wish: bytes | None = None) -> tuple[_Routed, bytes]:
        """Who answers, and the body to pass on."""
        asked, start, end = _model_in(raw)
        if pinned := PINNED.match(asked):
            return _Routed(asked, revision=int(pinned[1])), raw
        try:
            pointer = self._pointer.read()
        except Refused:
            if admin:
                return _Routed(asked), raw
            raise
        if asked != pointer.alias:
            return _Routed(asked), raw
        self._require_routable(pointer)
        model, revision = self._drawn(pointer, wish)
        tally = None
        if pointer.canary is not None and wish != NEVER:
            tally = self.state.tally(pointer.canary.model, model)
        body = b"".join((memoryview(raw)[:start], _json(model), memoryview(raw)[end:]))
        return _Routed(model, revision, pointer, tally), body

    def _drawn(self, pointer: ServedPointer, wish: bytes | None) -> tuple[str, int]:
        """The revision that answers; a canary only where it is verified, else the live one."""
        canary = pointer.canary
        if canary is None or canary.model not in self.state.verified or wish == NEVER:
            return pointer.model, pointer.revision
        if wish == ALWAYS or self._draw() < canary.share:
            return canary.model, canary.revision
        return pointer.model, pointer.revision

    def _require_routable(self, pointer: ServedPointer) -> None:
        if pointer.model not in self.state.verified:
            raise Refused(503, f"revision {pointer.revision} is not verified on this server yet")

    async def _models(self, scope: Scope, receive: Receive, send: Send, listing: bool) -> None:
        if not listing:
            await self.app(scope, receive, send)
            return
        start, body = await _collect(self.app, scope, receive)
        if start["status"] == 200:
            body = self._with_alias(body)
        start["headers"] = _with_length(start["headers"], len(body))
        await send(start)
        await send({"type": "http.response.body", "body": body})

    def _with_alias(self, body: bytes) -> bytes:
        try:
            pointer = self._pointer.read()
        except Refused:
            return body
        listed = json.loads(body)
        for card in listed["data"]:
            if card["id"] == pointer.model:
                listed["data"].append(
                    {**card, "id": pointer.alias, "root": pointer.model, "parent": pointer.model}
                )
                return _json(listed)
        return body

    async def _ready(self, send: Send) -> None:
        self._require_awake()
        pointer = self._pointer.read()
        self._require_routable(pointer)
        said: dict[str, object] = {"revision": pointer.revision, "model": pointer.model}
        if pointer.canary is not None and pointer.canary.model in self.state.verified:
            said["canary"] = pointer.canary.revision
        await _answer(send, 200, _json(said))

    # --- admin routes -------------------------------------------------------------------------

    async def _admin(
        self, path: str, method: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if path == "/palorad/state" and method == "GET":
            await _answer(send, 200, self._state())
            return
        raw = await self._body(scope, receive)
        if raw is None:
            return
        if path == "/palorad/verified" and method in {"POST", "DELETE"}:
            if method == "POST":
                self.state.verified.add(_text(raw, "model"))
            else:  # fenced off: the alias answers from nothing until something is verified again
                self.state.verified.clear()
            await _answer(send, 200, self._state())
            return
        if method == "POST" and path in LOADING:
            self._check_load(raw, *LOADING[path])
            # What a sleeping server would load into has been given back.
            self._require_awake()
        forgotten = ""
        if path == "/v1/unload_lora_adapter":
            forgotten = _text(raw, "lora_name")
        elif method == "DELETE" and path.startswith("/adapters/"):
            forgotten = path.removeprefix("/adapters/")
        self.state.verified.discard(forgotten)
        self.state.answered.pop(forgotten, None)
        again = _replay(raw, receive)
        if method == "POST" and path == "/sleep":
            await self._sleep(scope, again, send)
        elif method == "POST" and path == "/wake_up":
            await self._wake(scope, again, send)
        else:
            await self.app(scope, again, send)

    async def _sleep(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Finish what runs, then have the server sleep."""
        self.state.fall_asleep()
        # vLLM carries out a sleep that waits for requests even after a wake-up that overtook it.
        async with self.state.changing:
            self.state.fall_asleep()
            await self.state.drained()
            if await _status_of(self.app, scope, receive, send) >= 400:
                self.state.asleep = False

    async def _wake(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wake the server; a sleep that still waits for requests is called off."""
        self.state.wakes += 1
        self.state.news.set()
        async with self.state.changing:
            if await _status_of(self.app, scope, receive, send) < 400:
                self.state.asleep = False

    def _state(self) -> bytes:
        try:
            pointer: ServedPointer | None = self._pointer.read()
            problem = ""
        except Refused as refused:
            pointer, problem = None, refused.message
        return _json(
            {
                "instance_id": self.state.instance_id,
                "pointer": pointer and asdict(pointer),
                "problem": problem,
                "verified": sorted(self.state.verified),
                "asleep": self.state.asleep,
                "in_flight": self.state.in_flight,
                "answered": self.state.answered,
                "traffic": {model: asdict(one) for model, one in self.state.traffic.items()},
            }
        )

    def _check_load(self, raw: bytes, name_key: str, path_key: str) -> None:
        name, path = _text(raw, name_key), _text(raw, path_key)
        if not NAME.match(name):
            raise Refused(400, f"{name_key!r} must be letters, digits, '.', '_' and '-'")
        if json.loads(raw).get("load_inplace"):
            raise Refused(403, "a name is never loaded again in place: publish a new revision")
        served = os.path.realpath(self.gateway.served)
        inside = Path(path).is_absolute() and ".." not in Path(path).parts and path.isprintable()
        if not inside or Path(os.path.realpath(path)).parent != Path(served):
            raise Refused(403, f"{name}: an adapter's path must be a directory in {served}")


class _Answer:
    """Sends an answer on, with the alias put back for the name it stands for."""

    def __init__(self, routed: _Routed, send: Send) -> None:
        self.routed = routed
        self.send = send
        self.status = 500
        self.begun = False
        self._start: Message | None = None
        self._json = False
        self._stream = False
        self._held = b""
        if routed.pointer is not None:
            names = json.dumps(routed.model), json.dumps(routed.pointer.alias)
            self._swaps = [
                (f'"model":{gap}{names[0]}'.encode(), f'"model":{gap}{names[1]}'.encode())
                for gap in ("", " ")
            ]

    async def __call__(self, message: Message) -> None:
        """One ASGI message from the server."""
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif message["type"] == "http.response.body" and (self._json or self._stream):
            await self._body(message)
        else:
            await self.send(message)

    async def _begin(self, message: Message) -> None:
        headers: Headers = list(message.get("headers", ()))
        self.status, self.begun = message["status"], True
        message = {**message, "headers": headers + self._marks(self.status)}
        if self.routed.pointer is not None:
            kind = next((v for k, v in headers if k.lower() == b"content-type"), b"")
            encoded = any(k.lower() == b"content-encoding" for k, _ in headers)
            self._json = kind.startswith(b"application/json") and not encoded
            self._stream = kind.startswith(b"text/event-stream") and not encoded
        if self._json:
            self._start = message
        else:
            await self.send(message)

    def _marks(self, status: int) -> Headers:
        routed = self.routed
        if routed.pointer is None and (status >= 400 or not NAME.match(routed.model)):
            return []
        marks = [(b"x-palorad-model", routed.model.encode())]
        if routed.revision is not None:
            marks.append((b"x-palorad-revision", str(routed.revision).encode()))
        return marks

    async def _body(self, message: Message) -> None:
        more = message.get("more_body", False)
        body = self._held + message.get("body", b"")
        if self._json and more:
            self._held = body
            return
        # An event ends with a line break; what follows the last one may be half a name.
        end = len(body) if not more else body.rfind(b"\n") + 1
        self._held = body[end:]
        body = body[:end]
        for old, new in self._swaps:
            body = body.replace(old, new)
        if self._start is not None:
            start, self._start = self._start, None
            await self.send({**start, "headers": _with_length(start["headers"], len(body))})
        if body or not more:
            await self.send({**message, "body": body})


async def _collect(app: App, scope: Scope, receive: Receive) -> tuple[Message, bytes]:
    start: Message = {"type": "http.response.start", "status": 500, "headers": []}
    parts: list[bytes] = []

    async def keep(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))

    await app(scope, receive, keep)
    return start, b"".join(parts)


async def _status_of(app: App, scope: Scope, receive: Receive, send: Send) -> int:
    status = 500

    async def watch(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        await send(message)

    await app(scope, receive, watch)
    return status


def _route(scope: Scope) -> str:
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path.removeprefix(root) if root and path.startswith(root + "/") else path


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)


def _bearer(scope: Scope) -> bytes | None:
    kind, _, key = (_header(scope, b"authorization") or b"").partition(b" ")
    return key.strip() if kind.lower() == b"bearer" and key.strip() else None


def _replay(body: bytes, receive: Receive) -> Receive:
    left = [body]
    del body

    async def again() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return again


def _model_in(raw: bytes) -> tuple[str, int, int]:
    """The name under "model" at the body's top level, and where its JSON begins and ends.

    "" where there is none. Nothing is parsed: parsed, a body takes up to 27 times its size.
    """
    depth, value, named = 0, -1, None
    for number, piece in enumerate(PIECES.finditer(raw)):
        if number > MOST_PIECES:
            raise Refused(413, f"the body has more than {MOST_PIECES} strings and brackets")
        start, end = piece.span()
        if raw[start] in b"{[":
            if not depth and raw[start] in b"[":
                break
            depth += 1
        elif raw[start] in b"}]":
            depth -= 1
        if depth <= 0 or raw[start:end] == b'"':
            break
        if start == value:
            named = start, end
        elif depth != 1 or end - start > 32 or _string(raw[start:end]) != "model":
            continue
        elif colon := COLON.match(raw, end):
            if value >= 0:
                raise Refused(400, "the body names its model twice")
            value = colon.end()
    if named is None or raw[named[0]] not in b'"':
        return "", 0, 0
    if named[1] - named[0] > LONGEST_NAME:
        raise Refused(400, f"a model's name has at most {LONGEST_NAME} bytes")
    return _string(raw[slice(*named)]), *named


def _string(raw: bytes) -> str:
    try:
        return str(json.loads(raw))
    except ValueError:
        return ""


def _mac(key: bytes, *parts: str) -> str:
    return hmac.new(key, "\n".join(parts).encode(errors="replace"), hashlib.sha256).hexdigest()


def proof(key: bytes, boot: str, nonce: str) -> str:
    """What a process that calls itself `boot` answers to show that it has the admin key."""
    return _mac(key, "palorad server", boot, nonce)


def signature(key: bytes, boot: str, method: str, target: str, body: bytes) -> str:
    """`x-palorad-signed`: stands for the admin key, in this one request to the process `boot`."""
    return _signed(key, boot, method, target, hashlib.sha256(body).hexdigest())


def _signed(key: bytes, boot: str, method: str, target: str, digest: str) -> str:
    return digest + _mac(key, "palorad request", boot, method, target, digest)


def _with_length(headers: Headers, length: int) -> Headers:
    dropped = {b"content-length", b"transfer-encoding"}
    kept = [(k, v) for k, v in headers if k.lower() not in dropped]
    return [*kept, (b"content-length", str(length).encode())]


def _text(raw: bytes, key: str) -> str:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON: {error}") from error
    text = value.get(key) if isinstance(value, dict) else None
    if not isinstance(text, str) or not text:
        raise Refused(400, f"the body must name {key!r}")
    return text


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _error(status: int, message: str) -> bytes:
    kinds = {
        401: "AuthenticationError",
        403: "PermissionDeniedError",
        408: "RequestTimeoutError",
        409: "ConflictError",
        413: "RequestTooLargeError",
        503: "ServiceUnavailableError",
    }
    kind = kinds.get(status, "BadRequestError")
    return _json({"error": {"message": message, "type": kind, "param": None, "code": status}})


async def _answer(send: Send, status: int, body: bytes, retry_s: int = 1) -> None:
    headers: Headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 503:
        headers.append((b"retry-after", str(retry_s).encode()))
    if status in {408, 413}:  # the rest of the body is not read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

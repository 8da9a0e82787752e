"""A mounted disk in a process of its own: cut its power, fill it, break it, read what is left."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pickle
import random
import re
import selectors
import shutil
import signal
import socket
import struct
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.disk.fuse import MAX_WRITE, Answering, Refusal, mount, unmount
from tests.support.disk.model import Files, Image

PLENTY = 1 << 20  # blocks
CHANGES = frozenset(
    {"write", "fsync", "rename", "create", "mkdir", "unlink", "rmdir", "link", "truncate"}
)


@dataclass(frozen=True)
class Fault:
    """The next `times` requests of these kinds, at paths that match, fail with `number`.

    What the process `sparing` asks for, a test that writes files itself, does not.
    """

    kinds: frozenset[str]
    path: str
    number: int
    times: int = 1
    sparing: int = 0

    def hits(self, kind: str, path: str, asker: int) -> bool:
        spared = asker == self.sparing or kind not in self.kinds
        return not spared and re.fullmatch(self.path, path) is not None


@dataclass
class _Served:
    """The state of the process that serves the file system."""

    record: bool = False
    seed: int = 0
    marks: tuple[str, ...] = ()
    images: list[Image] = field(default_factory=list)
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    fault: Fault | None = None
    hit: list[tuple[str, str]] = field(default_factory=list)
    free: int = PLENTY
    sparing: int = 0
    steps: int = 0


class _Server:
    def __init__(self) -> None:
        self.files = Files()
        self.state = _Served()
        self.answering = Answering(self.files, self._before, self._synced, lambda: self.state.free)

    def _before(self, kind: str, path: str) -> None:
        state = self.state
        if kind in CHANGES and self.answering.asker != state.sparing:
            state.seen[kind, path] += 1
        fault = state.fault
        if fault is not None and fault.hits(kind, path, self.answering.asker):
            state.hit.append((kind, path))
            left = replace(fault, times=fault.times - 1)
            state.fault = left if left.times else None
            raise Refusal(fault.number)
        if state.free <= 0 and kind in {"write", "create", "mkdir"}:
            raise Refusal(errno.ENOSPC)

    def _synced(self, path: str, done: bool) -> None:
        """The disk is another from here on: what is left now, and what might have been before."""
        state = self.state
        state.steps += 1
        if not state.record:
            return
        draw = None if done else random.Random(f"{state.seed} {state.steps}")
        content = self.files.left(draw)
        state.images.append(Image(state.steps, path, state.marks, draw is not None, content))

    def obey(self, order: str, value: Any) -> Any:
        state = self.state
        match order:
            case "mark":
                state.marks = (*state.marks, value)
                if state.record:
                    image = Image(state.steps, value, state.marks, False, self.files.left())
                    state.images.append(image)
            case "record":
                state.record, state.seed = True, value
            case "images":
                return state.images
            case "spare":
                state.sparing = value
            case "seen":
                return dict(state.seen)
            case "fail":
                state.fault, state.hit = value, []
            case "hit":
                return list(state.hit)
            case "free":
                state.free = value
            case "settle":
                self.files.settle()
            case "left":
                return self.files.left()
        return None


class Disk:
    """What a test does with the disk that is mounted at `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            _serve(folder, theirs, self._ours)
        theirs.close()
        failed = self._receive()
        if failed is not None:
            os.waitpid(self.pid, 0)
            raise failed

    def ask(self, order: str, value: object = None) -> Any:
        _send(self._ours, (order, value))
        return self._receive()

    def _receive(self) -> Any:
        size = struct.unpack("<I", _exactly(self._ours, 4))[0]
        return pickle.loads(_exactly(self._ours, size))

    def mark(self, what: str) -> None:
        """From now on this must survive a power cut."""
        self.ask("mark", what)

    def fail(
        self, kinds: Iterable[str], path: str, number: int, times: int = 1, sparing: int = 0
    ) -> None:
        """Have requests fail from now on, but those of the process `sparing`."""
        self.ask("fail", Fault(frozenset(kinds), path, number, times, sparing))

    def heal(self) -> None:
        """No request fails any more, and there is room."""
        self.ask("fail", None)
        self.ask("free", PLENTY)

    def close(self) -> None:
        unmount(self.folder)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._ours.close()


def _serve(folder: Path, orders: socket.socket, theirs: socket.socket) -> None:
    """The process of a disk; never returns."""
    try:
        theirs.close()
        os.setsid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        try:
            device = mount(folder)
        except OSError as error:
            _send(orders, error)
            os._exit(1)
        _send(orders, None)
        _loop(device, orders, _Server())
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(0)


def _loop(device: int, orders: socket.socket, server: _Server) -> None:
    waiting = selectors.DefaultSelector()
    waiting.register(device, selectors.EVENT_READ, "device")
    waiting.register(orders, selectors.EVENT_READ, "orders")
    while True:
        for key, _ in waiting.select():
            if key.data == "orders":
                size = struct.unpack("<I", _exactly(orders, 4))[0]
                order, value = pickle.loads(_exactly(orders, size))
                _send(orders, server.obey(order, value))
                continue
            try:
                request = os.read(device, MAX_WRITE + 4096)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                continue
            answer = server.answering.answer(request)
            if answer is not None:
                # ENOENT: the one who asked has been killed meanwhile.
                with contextlib.suppress(FileNotFoundError):
                    os.write(device, answer)


def _send(to: socket.socket, value: object) -> None:
    data = pickle.dumps(value)
    to.sendall(struct.pack("<I", len(data)) + data)


def _exactly(source: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = source.recv(min(size - len(data), 1 << 20))
        if not piece:
            raise EOFError("the disk's process is gone")
        data += piece
    return bytes(data)


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[Disk]:
    """A disk at `folder`; skips the test where none can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        disk = Disk(folder)
    except OSError as error:
        pytest.skip(f"no file system in user space can be mounted here ({error})")
    try:
        yield disk
    finally:
        disk.close()


def restore(image: Image, folder: Path) -> None:
    """Make `folder` what was left on the disk; an empty disk may be mounted there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for name, kept in image.content.items():
        path = folder / name
        if kept is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.write_bytes(kept[1])
            path.chmod(kept[0])


def eventually(disk: Disk, patience_s: float = 10.0) -> list[tuple[str, str]]:
    """The requests that failed, once there are any."""
    end = time.monotonic() + patience_s
    while not (hit := disk.ask("hit")) and time.monotonic() < end:
        time.sleep(0.005)
    return hit  # type: ignore[no-any-return]  # what the disk's process answers

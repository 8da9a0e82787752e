"""The kernel's side of a file system in user space (include/uapi/linux/fuse.h), without libfuse."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path

from tests.support.disk.model import Files, Inode

MNT_DETACH = 2
FOREVER_S = 1 << 30
MAX_WRITE = 1 << 17
BLOCKS = 1 << 20  # of 4 KiB: what df sees
BIG_WRITES, ASYNC_READ, MAX_PAGES = 1 << 5, 1 << 0, 1 << 22
BY_MODE, BY_OWNER, BY_GROUP, BY_SIZE, BY_MTIME, MTIME_NOW = 1, 2, 4, 8, 32, 256


class Op(IntEnum):
    """What the kernel asks for."""

    LOOKUP, FORGET, GETATTR, SETATTR = 1, 2, 3, 4
    MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE = 8, 9, 10, 11, 12, 13, 14, 15, 16
    STATFS, RELEASE, FSYNC, FLUSH, INIT = 17, 18, 20, 25, 26
    OPENDIR, READDIR, RELEASEDIR, FSYNCDIR = 27, 28, 29, 30
    ACCESS, CREATE, INTERRUPT, DESTROY, BATCH_FORGET, RENAME2 = 34, 35, 36, 38, 42, 45


WITHOUT_ANSWER = frozenset({Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT, Op.DESTROY})
RENAME_NOREPLACE = 1

_libc = ctypes.CDLL(None, use_errno=True)


class Refusal(Exception):
    """A request that is answered by an error number."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(os.strerror(number))


def mount(folder: Path) -> int:
    """Mount a file system there and return the descriptor to serve it by; raises `OSError`."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    if _libc.mount(b"palorad", os.fsencode(folder), b"fuse", 0, options.encode()):
        number = ctypes.get_errno()
        os.close(device)
        raise OSError(number, os.strerror(number), str(folder))
    return device


def unmount(folder: Path) -> None:
    """Take the file system away, whoever still has a file open."""
    _libc.umount2(os.fsencode(folder), MNT_DETACH)


# What happens to a request: its kind and path are told before it is done; may raise `Refusal`.
Hook = Callable[[str, str], None]


class Answering:
    """Answers the kernel's requests out of `files`.

    `before` hears of every change ("write", "fsync", "rename", ...) and may refuse it; `synced`
    is called around every fsync, with whether it has been done. `asker` is the process that asks.
    """

    def __init__(
        self,
        files: Files,
        before: Hook,
        synced: Callable[[str, bool], None],
        room: Callable[[], int],
    ) -> None:
        self.files = files
        self._before = before
        self._synced = synced
        self._room = room
        self.asker = 0

    def answer(self, request: bytes) -> bytes | None:
        """The bytes to write back; None where the kernel expects none."""
        _, opcode, unique, node, uid, gid, self.asker, _ = struct.unpack_from("<IIQQIIII", request)
        if opcode in WITHOUT_ANSWER:
            return None
        try:
            body, number = self._do(opcode, node, request[40:], (uid, gid)), 0
        except Refusal as refusal:
            body, number = b"", -refusal.number
        return struct.pack("<IiQ", 16 + len(body), number, unique) + body

    def _do(self, opcode: int, node: int, body: bytes, owner: tuple[int, int]) -> bytes:  # noqa: PLR0911, PLR0912 - one branch a kind
        inode = self.files.inodes[node] if opcode != Op.INIT else Inode(0)
        match opcode:
            case Op.INIT:
                return _init(body)
            case Op.LOOKUP:
                return self._entry(self._named(node, _names(body)[0]))
            case Op.GETATTR:
                return struct.pack("<QII", FOREVER_S, 0, 0) + self._attributes(node)
            case Op.SETATTR:
                return self._setattr(node, body)
            case Op.MKNOD | Op.MKDIR | Op.CREATE:
                return self._make(opcode, node, body, owner)
            case Op.UNLINK | Op.RMDIR:
                return self._remove(opcode, node, _names(body)[0])
            case Op.RENAME | Op.RENAME2:
                return self._rename(opcode, node, body)
            case Op.LINK:
                (source,) = struct.unpack_from("<Q", body)
                name = _names(body[8:])[0]
                self._before("link", f"{inode.path}/{name}".lstrip("/"))
                self.files.name(((node, name, source),))
                return self._entry(source)
            case Op.OPEN | Op.OPENDIR:
                if opcode == Op.OPEN:
                    self._before("open", inode.path)
                return struct.pack("<QII", 0, 0, 0)
            case Op.READ:
                place, size = struct.unpack_from("<QI", body, 8)
                self._before("read", inode.path)
                return bytes(inode.data[place : place + size])
            case Op.WRITE:
                place, size = struct.unpack_from("<QI", body, 8)
                self._before("write", inode.path)
                self.files.write(node, place, body[40 : 40 + size])
                return struct.pack("<II", size, 0)
            case Op.STATFS:
                free = self._room()
                return struct.pack(
                    "<QQQQQIIII24x", BLOCKS, free, free, BLOCKS, BLOCKS, 4096, 255, 4096, 0
                )
            case Op.FSYNC | Op.FSYNCDIR:
                self._before("fsync", inode.path)
                self._synced(inode.path, False)
                if self.files.sync(node):
                    self._synced(inode.path, True)
                return b""
            case Op.RELEASE | Op.FLUSH | Op.RELEASEDIR | Op.ACCESS:
                return b""
            case Op.READDIR:
                return self._readdir(node, body)
        raise Refusal(errno.ENOSYS)

    def _named(self, folder: int, name: str) -> int:
        found = self.files.find(folder, name)
        if found is None:
            raise Refusal(errno.ENOENT)
        return found

    def _attributes(self, number: int) -> bytes:
        inode = self.files.inodes[number]
        times = (inode.modified, inode.modified, inode.changed)
        size = len(inode.data)
        return struct.pack(
            "<6Q10I",
            *(number, size, -(-size // 512)),
            *(moment // 10**9 for moment in times),
            *(moment % 10**9 for moment in times),
            *(
                inode.mode,
                max(inode.links - 1, 0) or int(inode.is_folder),
                *inode.owner,
                0,
                4096,
                0,
            ),
        )

    def _entry(self, number: int) -> bytes:
        return struct.pack("<QQQQII", number, 0, FOREVER_S, FOREVER_S, 0, 0) + self._attributes(
            number
        )

    def _setattr(self, node: int, body: bytes) -> bytes:
        valid, _, _, size, _, _, mtime, _, _, nsec, _, mode, _, uid, gid, _ = struct.unpack_from(
            "<II6Q8I", body
        )
        inode = self.files.inodes[node]
        if valid & BY_SIZE:
            self._before("truncate", inode.path)
            self.files.resize(node, size)
        if valid & BY_MODE:
            inode.mode = stat.S_IFMT(inode.mode) | stat.S_IMODE(mode)
        if valid & (BY_OWNER | BY_GROUP):
            inode.owner = (
                uid if valid & BY_OWNER else inode.owner[0],
                gid if valid & BY_GROUP else inode.owner[1],
            )
        self.files.touch(inode, content=bool(valid & MTIME_NOW))
        if valid & BY_MTIME and not valid & MTIME_NOW:
            inode.modified = mtime * 10**9 + nsec
        return struct.pack("<QII", FOREVER_S, 0, 0) + self._attributes(node)

    def _make(self, opcode: int, folder: int, body: bytes, owner: tuple[int, int]) -> bytes:
        if opcode == Op.MKDIR:
            mode, umask = struct.unpack_from("<II", body)
            kind, name = stat.S_IFDIR, _names(body[8:])[0]
        elif opcode == Op.MKNOD:
            mode, _, umask = struct.unpack_from("<III", body)
            kind, name = stat.S_IFMT(mode), _names(body[16:])[0]
        else:
            _, mode, umask = struct.unpack_from("<III", body)
            kind, name = stat.S_IFREG, _names(body[16:])[0]
        self._before(
            "mkdir" if opcode == Op.MKDIR else "create",
            f"{self.files.inodes[folder].path}/{name}".lstrip("/"),
        )
        number = self.files.find(folder, name)
        if number is not None and opcode != Op.CREATE:
            raise Refusal(errno.EEXIST)
        if number is None:
            permissions = stat.S_IMODE(mode) & ~umask
            number = self.files.make(folder, name, kind | permissions, owner)
        opened = struct.pack("<QII", 0, 0, 0) if opcode == Op.CREATE else b""
        return self._entry(number) + opened

    def _remove(self, opcode: int, folder: int, name: str) -> bytes:
        gone = self.files.inodes[self._named(folder, name)]
        self._before("rmdir" if opcode == Op.RMDIR else "unlink", gone.path)
        if opcode == Op.RMDIR and gone.entries:
            raise Refusal(errno.ENOTEMPTY)
        self.files.name(((folder, name, None),))
        return b""

    def _rename(self, opcode: int, folder: int, body: bytes) -> bytes:
        to, flags = struct.unpack_from("<QI", body)
        old, new = _names(body[16 if opcode == Op.RENAME2 else 8 :])
        flags = flags if opcode == Op.RENAME2 else 0
        number = self._named(folder, old)
        self._before("rename", f"{self.files.inodes[to].path}/{new}".lstrip("/"))
        there = self.files.find(to, new)
        if there is not None:
            if flags & RENAME_NOREPLACE:
                raise Refusal(errno.EEXIST)
            if self.files.inodes[there].entries:
                raise Refusal(errno.ENOTEMPTY)
        self.files.name(((folder, old, None), (to, new, number)))
        self._repath(number)
        return b""

    def _repath(self, number: int) -> None:
        inode = self.files.inodes[number]
        for name, child in inode.entries.items():
            self.files.inodes[child].path = f"{inode.path}/{name}"
            self._repath(child)

    def _readdir(self, node: int, body: bytes) -> bytes:
        offset, size = struct.unpack_from("<QI", body, 8)
        answer = b""
        for place, (name, number) in enumerate(list(self.files.inodes[node].entries.items())):
            if place < offset:
                continue
            raw = name.encode("utf-8", "surrogateescape")
            kind = stat.S_IFMT(self.files.inodes[number].mode) >> 12
            entry = struct.pack("<QQII", number, place + 1, len(raw), kind) + raw
            entry += bytes(-len(entry) % 8)
            if len(answer) + len(entry) > size:
                break
            answer += entry
        return answer


def _init(body: bytes) -> bytes:
    major, _minor, readahead, flags = struct.unpack_from("<IIII", body)
    wanted = flags & (BIG_WRITES | ASYNC_READ | MAX_PAGES)
    return struct.pack(
        "<IIIIHHIIHHI28x", major, 31, readahead, wanted, 16, 12, MAX_WRITE, 1, 32, 0, 0
    )


def _names(body: bytes) -> list[str]:
    return [name.decode("utf-8", "surrogateescape") for name in body.split(b"\0")[:-1]]

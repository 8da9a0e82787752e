"""The hash of a model's files; needs the standard library only."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

HASHED = ("*.safetensors", "config.json", "generation_config.json", "tokenizer*", "chat_template*",
          "special_tokens_map.json", "vocab.json", "merges.txt")  # fmt: skip


def model_hash(model_dir: Path) -> str:
    """SHA-256 over names and bytes of weights, config and tokenizer.

    A file is read once in a process, and again when anything in its inode has changed: its time of
    change cannot be set back as its time of modification can. Raises `OSError`.
    """
    files = sorted({path for pattern in HASHED for path in model_dir.glob(pattern)})
    digest = hashlib.sha256()
    for path in files:
        status = path.stat()
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest.update(f"{path.name}\0{_file_sha256(path, stamp)}\n".encode())
    return digest.hexdigest()


@lru_cache(maxsize=1024)
def _file_sha256(path: Path, stamp: tuple[int, ...]) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

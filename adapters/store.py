"""Immutable directories named by their content: written beside, fsynced, published by rename."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from adapters import files
from adapters.errors import StoreConflict

MANIFEST = "manifest.json"


def content_hash(directory: Path) -> str:
    """SHA-256 over the names and hashes of all files except the manifest."""
    return _hash_of(_hashes(directory))


def manifest_hash(directory: Path) -> str:
    """The same of the files that the manifest lists; where `verify` finds nothing, they are those
    that are there. Raises `StoreConflict` where there is no manifest."""
    return _hash_of(read_manifest(directory).get("files", {}))


def _hash_of(hashes: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for name, sha in sorted(hashes.items()):
        digest.update(f"{name}\0{sha}\n".encode())
    return digest.hexdigest()


def publish(
    source: Path,
    parent: Path,
    facts_about_it: Mapping[str, Any],
    name: Callable[[str], str] = lambda sha: sha[:12],
) -> Path:
    """Move a finished `source` directory to `parent/name(sha256)` and return that path.

    The manifest (file hashes, and `facts_about_it`) is written last, everything is fsynced, and
    the rename is the moment of truth. The same content published before is success, and `source`
    is removed. Raises `StoreConflict` when something else stands at that name.
    """
    hashes = _hashes(source)
    if not hashes:
        raise StoreConflict(f"nothing to publish in {source}")
    sha = content_hash(source)
    target = parent / name(sha)
    if target.exists():
        if _published_hash(target) != sha or verify(target):
            raise StoreConflict(f"{target} exists with other content; it is never overwritten")
        return _there_already(source, target)
    for file in hashes:
        files.sync(source / file)
    manifest = {"sha256": sha, "files": hashes, **facts_about_it}
    files.write_json(source / MANIFEST, manifest)
    for folder in sorted({(source / file).parent for file in hashes} | {source}):
        files.sync(folder)
    files.make_folder(parent)
    try:
        source.rename(target)
    except OSError as error:
        if target.exists() and _published_hash(target) == sha and not verify(target):
            return _there_already(source, target)
        raise StoreConflict(f"cannot publish {source.name} as {target}: {error}") from error
    files.sync(parent)
    return target


def _there_already(source: Path, target: Path) -> Path:
    """Whoever published it may have been killed before its name was on the disk."""
    files.sync(target.parent)
    shutil.rmtree(source)
    return target


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a published directory; `StoreConflict` where there is none."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise StoreConflict(f"{directory} has no readable {MANIFEST}: {error}") from error
    if not isinstance(manifest, dict):
        raise StoreConflict(f"{directory / MANIFEST} is no JSON object")
    return manifest


def verify(directory: Path) -> tuple[str, ...]:
    """What differs between a published directory and its manifest, and which of its tensors (those
    in bf16 aside) hold NaN or infinite values; empty when all is well.
    """
    try:
        expected = read_manifest(directory).get("files", {})
    except StoreConflict as error:
        return (str(error),)
    actual = _hashes(directory)
    links = [path for path in sorted(directory.rglob("*")) if path.is_symlink()]
    problems = [f"{path.relative_to(directory)} is a link, not a file" for path in links]
    problems += [f"{name} is missing" for name in sorted(expected.keys() - actual.keys())]
    problems += [f"{name} was added" for name in sorted(actual.keys() - expected.keys())]
    problems += [
        f"{name} has changed"
        for name in sorted(expected.keys() & actual.keys())
        if expected[name] != actual[name]
    ]
    return (*problems, *(() if problems else _not_finite(directory)))


def _not_finite(directory: Path) -> list[str]:
    """A server loads NaN without a word, and then keeps it in its cache."""
    found = []
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, framework="np") as file:
                found += [
                    f"{path.name}: {name} holds NaN or infinite values"
                    for name in file.keys()  # noqa: SIM118  # not a mapping
                    if file.get_slice(name).get_dtype() in ("F16", "F32", "F64")
                    and not np.isfinite(file.get_tensor(name)).all()
                ]
        except SafetensorError as error:
            found.append(f"{path.name} cannot be read: {error}")
    return found


def staging(parent: Path, name: str) -> Path:
    """An empty directory beside the published ones, on the same file system, to write into."""
    path = parent / f".tmp-{name}"
    if path.exists():
        shutil.rmtree(path)
    files.make_folder(parent)
    path.mkdir()
    return path


def _hashes(directory: Path) -> dict[str, str]:
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path != directory / MANIFEST:
            with path.open("rb") as stream:
                sha = hashlib.file_digest(stream, "sha256").hexdigest()
            found[path.relative_to(directory).as_posix()] = sha
    return found


def _published_hash(directory: Path) -> str | None:
    try:
        sha = read_manifest(directory).get("sha256")
    except StoreConflict:
        return None
    return sha if isinstance(sha, str) else None


def text_hash(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def remove(directory: Path) -> None:
    """Delete a directory that is no longer needed, durably; not there is success.

    Raises `OSError` where something of it cannot be deleted.
    """
    if directory.exists() or directory.is_symlink():
        shutil.rmtree(directory)
    # Whoever deleted it may have been killed before that was on the disk.
    if directory.parent.is_dir():
        files.sync(directory.parent)

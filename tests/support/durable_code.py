"""Every durable step that the source has, found by reading it, so that none can be forgotten."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from adapters import files, store
from daemon.base import faults
from daemon.base.faults import PHASES

ROOT = Path(__file__).parents[2]
# What makes a file durable; where one of them is called, something is committed.
COMMITS = frozenset(
    {
        *("write_bytes", "write_text", "write_json", "replacing"),
        *("put_in_place", "sync", "sync_stream", "make_folder"),
    }
)
STORE = frozenset({"publish", "remove"})
PRIMITIVES = ("put_in_place", "sync", "sync_stream")


def points() -> dict[str, str]:
    """A pattern for the names of each fault point in the code, and where it stands.

    A transaction stands for a point before, within and after it.
    """
    found: dict[str, str] = {}
    for path, call in _calls():
        name = _name(call)
        if name == "point" and path.name != "database.py":
            found[_pattern(call.args[0])] = f"{path.relative_to(ROOT)}:{call.lineno}"
        elif name == "write" and _owner(call) == "_db":
            for phase in PHASES:
                pattern = f"{_pattern(call.args[0])}:{phase}"
                found[pattern] = f"{path.relative_to(ROOT)}:{call.lineno}"
    return found


def commits() -> set[str]:
    """Where files are made durable: `module.function`."""
    return {
        f"{'.'.join(path.relative_to(ROOT).with_suffix('').parts)}.{function}"
        for path, function, call in _calls_within()
        if (_name(call) in COMMITS and _owner(call) == "files")
        or (_name(call) in STORE and _owner(call) == "store")
    }


@contextmanager
def killable_commits() -> Iterator[None]:
    """Processes that are forked meanwhile pass a fault point on each side of every file commit."""
    formers = [(files, name, getattr(files, name)) for name in PRIMITIVES]
    formers += [(store, name, getattr(store, name)) for name in STORE]
    for module, name, former in formers:
        setattr(module, name, _passing(former))
    try:
        yield
    finally:
        for module, name, former in formers:
            setattr(module, name, former)


def _passing(former: Callable[..., Any]) -> Callable[..., Any]:
    def passing(*arguments: Any, **named: Any) -> Any:
        where = _committer(sys._getframe(1))
        if where:
            faults.point(f"commit:{where}:before")
        done = former(*arguments, **named)
        if where:
            faults.point(f"commit:{where}:after")
        return done

    return passing


def _committer(frame: FrameType | None) -> str:
    """The function of palorad that commits something; "" for a test's."""
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if module.startswith(("daemon.", "adapters.")) and module != "adapters.files":
            return f"{module}.{frame.f_code.co_name}"
        if module.startswith("tests.") and module != __name__:
            return ""
        frame = frame.f_back
    return ""


def _calls() -> Iterator[tuple[Path, ast.Call]]:
    for path in sorted((ROOT / "daemon").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield path, node


def _calls_within() -> Iterator[tuple[Path, str, ast.Call]]:
    for folder in ("daemon", "adapters"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    for inner in ast.walk(node):
                        if isinstance(inner, ast.Call):
                            yield path, node.name, inner


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""


def _owner(call: ast.Call) -> str:
    if not isinstance(call.func, ast.Attribute):
        return ""
    owner = call.func.value
    return owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")


def _pattern(argument: ast.expr) -> str:
    """A regular expression for what a literal or an f-string may be."""
    if isinstance(argument, ast.Constant):
        return re.escape(str(argument.value))
    assert isinstance(argument, ast.JoinedStr), ast.dump(argument)
    parts = (
        re.escape(str(part.value)) if isinstance(part, ast.Constant) else "[a-z-]+"
        for part in argument.values
    )
    return "".join(parts)

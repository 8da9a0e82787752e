"""What shows that a setting is consumed: one observed effect for each key.

Everything is observed where a setting is used: a command line, a request, a learnt step, a
verdict, a file taken in, a timeout as it reaches the client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon.config.settings import Settings

Observe = Callable[[Settings, Path], object]


@dataclass(frozen=True)
class Effect:
    """`observe` sees another thing once the key has `value`, and the same thing otherwise.

    `given` sets other keys, and the key itself where its default is not what `value` is compared
    with. A value that is a function is called with the directory of the observation.
    """

    observe: Observe
    value: Any
    given: Mapping[str, Any] = field(default_factory=dict)

    def seen(self, key: str, root: Path, *, changed: bool) -> str:
        """What is observed below `root`, a new directory; paths in it are relative to that."""
        (root / "model").mkdir(parents=True)
        (root / "model" / "config.json").write_text("{}")
        keys = {"state_dir": "state", "model.path": "model", **self.given}
        if changed:
            keys[key] = self.value
        tree: dict[str, Any] = {}
        for path, value in keys.items():
            _put(tree, path.split("."), value(root) if callable(value) else value)
        settings = Settings(**tree).rooted(root)
        return repr(self.observe(settings, root)).replace(str(root), "ROOT")


def _put(tree: dict[str, Any], path: list[str], value: object) -> None:
    """Set a dotted key; of a list of tables, that of its first."""
    first, *rest = path
    if not rest:
        tree[first] = value
    elif first.endswith("[]"):
        _put(tree.setdefault(first.removesuffix("[]"), [{}])[0], rest, value)
    else:
        _put(tree.setdefault(first, {}), rest, value)


def outcome(work: Callable[[], object]) -> object:
    """What `work` returns, or the error that it raises as one line."""
    try:
        return work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

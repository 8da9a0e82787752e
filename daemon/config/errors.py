"""A wrong setting as one line: which source, which key, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError

from policies.errors import ConfigError

_OTHER_VARIABLES: Final = frozenset(
    {
        *("CONFIG", "DIE_AT", "DIE_ONCE", "TRACE", "STEPS", "PARENT"),
        *("ALIAS_FILE", "ADMIN_KEY_FILE", "SERVED_DIR", "USER_KEY_FILE", "MAX_BODY_BYTES"),
    }
)

RENAMED: Final[Mapping[str, str]] = {
    "train.wordings": "train.paraphrases",
    "train.framed": "train.prefixed",
    "train.effort": "train.batch_preset",
    "train.passes": "train.epochs",
    "train.renew": "train.retrain_at",
    "train.backward": "train.reversed_questions",
    "train.quiet": "train.quiet_hours",
    "train.replay.fill": "train.replay.min_traces",
    "gate.wordings": "gate.held_out_paraphrases",
    "gate.wordings_share": "gate.paraphrase_share",
    "gate.same_draw": "gate.revisions_per_draw",
    "intake.wordings": "intake.paraphrase_source",
    "intake.trained_wordings": "intake.min_paraphrases",
    "intake.paraphrases": "intake.model_paraphrases",
    "intake.paraphrase_budget": "intake.model_paraphrase_budget",
}
"""Keys that a configuration may still hold, by the name that they have now."""


def key_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key that may be set, dotted; tables in lists as `gate.suites[].name`."""
    for name, field in model.model_fields.items():
        section, listed = _section(field.annotation)
        path = f"{prefix}{name}"
        if section is None:
            yield path
        else:
            yield from key_paths(section, f"{path}{'[]' if listed else ''}.")


def check_environment(model: type[BaseModel], prefix: str, environ: Mapping[str, str]) -> None:
    """Raise `ConfigError` for a variable with our prefix that sets nothing."""
    for variable in environ:
        if not variable.upper().startswith(prefix):
            continue
        first = variable[len(prefix) :].split("__")[0]
        if first.upper() in _OTHER_VARIABLES or first.lower() in model.model_fields:
            continue
        near = nearest(first.lower(), list(model.model_fields))
        hint = f"; did you mean {prefix}{near.upper()}?" if near else ""
        raise ConfigError(f"environment variable {variable}: there is no such setting{hint}")


def explain(
    model: type[BaseModel],
    file: Path,
    error: ValidationError,
    table: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> str:
    """The first problem in one line, and how many more there are."""
    first, *others = error.errors(include_url=False)
    where = first["loc"]
    source = _source(file, where, table, overrides)
    more = f" (and {len(others)} more)" if others else ""
    key = _dotted(where)
    if first["type"] == "extra_forbidden":
        return f"{source}: unknown key {key}{_did_you_mean(model, key)}{more}"
    reason = str(first["msg"]).removeprefix("Value error, ")
    reason = reason[:1].lower() + reason[1:]
    given = first["input"]
    shown = f", not {given!r}" if isinstance(given, str | int | float) else ""
    return f"{source}: {key + ': ' if key else ''}{reason}{shown}{more}"


def nearest(word: str, known: list[str], likeness: float = 0.5) -> str | None:
    """The known word that was probably meant."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=likeness)
    return found[0] if found else None


def _did_you_mean(model: type[BaseModel], key: str) -> str:
    if now := RENAMED.get(_plain(key)):
        return f"; it is called {now} now"
    parent, _, last = _plain(key).rpartition(".")
    known = list(key_paths(model))
    elsewhere = {k.rpartition(".")[2]: k for k in known}
    beside = [k for k in known if _plain(k).rpartition(".")[0] == parent]
    names = {_plain(k).rpartition(".")[2]: k for k in beside}
    if not parent:
        names |= {name: name for name in model.model_fields}
    if near := nearest(last, list(names), 0.7):
        return f"; did you mean {names[near]}?"
    if last in elsewhere:
        return f"; it belongs to another table: {elsewhere[last]}"
    if near := nearest(last, list(elsewhere)):
        return f"; did you mean {elsewhere[near]}?"
    return f"; known here: {', '.join(sorted(names))}" if names else ""


def _plain(key: str) -> str:
    return ".".join(part.split("[")[0] for part in key.split("."))


def _dotted(where: tuple[int | str, ...]) -> str:
    key = ""
    for part in where:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    return key


def _source(
    file: Path,
    where: tuple[int | str, ...],
    table: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> str:
    if where and _holds(overrides, where):
        return "command line"
    if not where or _holds(table, where):
        return str(file)
    return "environment"


def _holds(tree: object, where: tuple[int | str, ...]) -> bool:
    for part in where:
        if isinstance(tree, Mapping):
            if part not in tree:
                return False
            tree = tree[part]
        elif isinstance(tree, list | tuple) and isinstance(part, int) and part < len(tree):
            tree = tree[part]
        else:
            return not isinstance(tree, Mapping | list | tuple)
    return True


def _section(annotation: object) -> tuple[type[BaseModel] | None, bool]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    for inner in get_args(annotation):
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner, True
    return None, False

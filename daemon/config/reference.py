"""`palorad config reference`: every key with its default and meaning, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from daemon.config.settings import Settings


def reference() -> str:
    """One table for each table of config.toml, in its order."""
    top = list(_rows(Settings, ""))
    parts = ["## Top level", *_table(top)]
    for name, field in Settings.model_fields.items():
        parts += _section(name, field)
    return "\n".join(parts) + "\n"


def _section(name: str, field: FieldInfo) -> Iterator[str]:
    model, listed = _model(field.annotation)
    if model is None:
        return
    title = name.replace("[]", "")
    yield f"\n## `[[{title}]]`" if listed else f"\n## `[{title}]`"
    yield from _table(list(_rows(model, f"{name}[]." if listed else f"{name}.")))
    for inner, inside in model.model_fields.items():
        if _model(inside.annotation)[0] is not None:
            yield from _section(f"{name}{'[]' if listed else ''}.{inner}", inside)


def _table(rows: list[str]) -> Iterator[str]:
    yield ""
    yield "| key | default | meaning |"
    yield "|---|---|---|"
    yield from rows


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if _model(field.annotation)[0] is not None:
            continue
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        choices = _choices(field.annotation)
        if choices:
            meaning = f"{meaning} One of {choices}."
        yield f"| `{prefix}{name}` | {_default(field)} | {meaning} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "–"
    value: Any = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, Path):
        value = str(value)
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def _choices(annotation: object) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    return ""


def _model(annotation: object) -> tuple[type[BaseModel] | None, bool]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    if get_origin(annotation) in (tuple, Union, UnionType):
        for inner in get_args(annotation):
            found, _ = _model(inner)
            if found is not None:
                return found, get_origin(annotation) is tuple
    return None, False

"""What `palorad doctor` says of memory: what training takes, by part, and what would fit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adapters import memory
from adapters.memory import Model, Training
from daemon.cli.suite_check import CheckResult
from daemon.serving import gpu
from daemon.serving.server_command import has_gpu
from policies.errors import PaloradError

if TYPE_CHECKING:
    from daemon.config.settings import Settings

LESS_SHARE: Final = 0.1
LESS_RANK: Final = 32


def memory_findings(settings: Settings) -> Iterator[CheckResult]:
    """Each part of the memory that trains, whether all fit, and of a GPU's host the same."""
    device: memory.Device = "cuda" if has_gpu() else "cpu"
    try:
        total = gpu.read_memory(os.environ).total if device == "cuda" else host_memory()
    except PaloradError as error:
        yield CheckResult("GPU", False, str(error))
        return
    where = "GPU memory" if device == "cuda" else "memory"
    model = _model(settings.model.path)
    if model is None:  # the model is not there, or tells no shapes: said elsewhere
        yield CheckResult(f"{where}: {_gb(total)}", True)
        return
    how = _costlier(model, gpu.training(settings, device))
    fitting = _in_smaller_passes(model, how, total)
    yield from _parts(memory.on_device(model, fitting).by_name, fitting)
    yield _verdict(where, model, how, fitting, total, settings)
    if device == "cuda":
        needed, there = memory.on_host(model, how).total, host_memory()
        advice = "" if needed <= there else "take a host with more; protection.share decides most"
        told = f"memory: {_gb(there)}, training on the GPU takes {_gb(needed)} of it"
        yield CheckResult(told, needed <= there, advice)


def host_memory() -> int:
    """Bytes of this host's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _model(path: Path) -> Model | None:
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return Model.of(config) if isinstance(config, dict) else None


def _costlier(model: Model, how: Training) -> Training:
    """On a CPU, of products in fp32 and in bf16 what takes more."""
    if how.device == "cuda":
        return how
    ways = (how, replace(how, rounded=True))
    return max(ways, key=lambda way: memory.on_device(model, way).total)


def _takes(model: Model, how: Training) -> int:
    return memory.on_device(model, how).total + (gpu.ROOM if how.device == "cuda" else 0)


def _in_smaller_passes(model: Model, how: Training, total: int) -> Training:
    """With passes halved until all fits, as training itself does, down to the longest text."""
    while _takes(model, how) > total and how.in_pass // 2 >= memory.longest():
        how = replace(how, tokens=how.in_pass // 2)
    return how


def _parts(parts: Mapping[str, int], how: Training) -> Iterator[CheckResult]:
    words = {
        "base": "the base in bf16" if how.device == "cuda" else "the base in fp32",
        "factors": f"factors of rank {how.rank}, gradients, optimiser",
        "protection": "protected directions",
        "recorded": "recorded states of the base, at most",
        "activations": f"activations of a pass of {how.in_pass:,} tokens",
        "logits": "logits",
    }
    for name, size in parts.items():
        if size:
            yield CheckResult(f"to train, {words[name]}: {_gb(size)}", True)


def _verdict(
    where: str, model: Model, how: Training, fitting: Training, total: int, settings: Settings
) -> CheckResult:
    needed = _takes(model, fitting)
    told = f"{where}: {_gb(total)}, training takes {_gb(needed)}"
    if needed > total:
        return CheckResult(told, False, _remedy(model, fitting, total, settings))
    if fitting.in_pass == how.in_pass:
        return CheckResult(told, True)
    usual = f"passes of {how.in_pass:,} tokens would take {_gb(_takes(model, how))}"
    return CheckResult(told, True, f"{usual}; training halves them by itself")


def _remedy(model: Model, how: Training, total: int, settings: Settings) -> str:
    """The least change of settings with which it fits, else how large a device must be."""
    for change, changed in _changes(how, settings):
        if (needed := _takes(model, changed)) <= total:
            return f"set {change}: then it takes {_gb(needed)}"
    base = memory.on_device(model, how).base
    alone = f"the base alone takes {_gb(base)}: " if base > total else ""
    larger = "GPU" if how.device == "cuda" else "machine"
    return f"{alone}take a {larger} with {_gb(_takes(model, how))}, or a smaller model"


def _changes(how: Training, settings: Settings) -> Iterator[tuple[str, Training]]:
    """Settings that take less, and all of them together."""
    found: list[tuple[str, Callable[[Training], Training]]] = []
    if how.share and how.soft:
        found.append(('protection.form = "hard"', lambda one: replace(one, soft=False)))
    if how.share > LESS_SHARE:
        name = f"protection.share = {LESS_SHARE:g}"
        found.append((name, lambda one: replace(one, share=LESS_SHARE)))
    if settings.train.lineage != "stack" and how.rank > LESS_RANK:
        name = f"train.rank_budget = {LESS_RANK}"
        found.append((name, lambda one: replace(one, rank=LESS_RANK)))
    together = how
    for name, change in found:
        yield name, change(how)
        together = change(together)
    if len(found) > 1:
        yield " and ".join(name for name, _ in found), together


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"

"""The gathered moments as files, one for every distinct input, while a probe is fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapters import files, moments
from adapters.errors import ProbeMismatch
from adapters.examples import PaddedBatch
from adapters.moments import Moment

SUFFIX = ".safetensors"


def gather(
    model: Any,
    matrices: Mapping[str, nn.Linear],
    batches: Sequence[PaddedBatch],
    folder: Path,
    share: float,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the moment of every distinct input to `folder`, where it is not there yet.

    `share` of the directions is kept. It takes as many passes over the batches as memory asks for
    (`moments.passes`); `tick` gets the batches read so far, and of how many.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lacking = {n: m for n, m in matrices.items() if not (folder / f"{n}{SUFFIX}").is_file()}
    groups = moments.passes(lacking)
    total = len(batches) * len(groups)

    def counted(before: int) -> Iterator[PaddedBatch]:
        for done, batch in enumerate(batches):
            tick(before + done, total)
            yield batch

    for index, group in enumerate(groups):
        found = moments.collect(model, group, counted(index * len(batches)))
        for name in group:
            collector = found.pop(name)
            packed = moments.pack(name, collector, share)
            if not all(bool(torch.isfinite(tensor).all()) for tensor in packed.values()):
                raise ProbeMismatch(
                    f"the inputs of {name} hold NaN or infinite values on the skill's text: "
                    "check the model's weights"
                )
            tokens = torch.tensor(collector.tokens)
            save(folder / f"{name}{SUFFIX}", {**packed, f"{name}.tokens": tokens})


def reader(folder: Path, matrices: Mapping[str, nn.Linear]) -> Callable[[str], Moment]:
    """Reads the gathered moment of a matrix; once for gate and up, which follow each other."""

    @lru_cache(maxsize=1)
    def read(owner: str) -> Moment:
        saved = load_file(folder / f"{owner}{SUFFIX}")
        return moments.unpack(owner, matrices[owner].in_features, saved)

    return lambda name: read(moments.input_owner(name))


def settle(folder: Path, wide: Path) -> tuple[dict[str, Tensor], int]:
    """The tensors of the small moments, and the tokens read; files of wide ones move to `wide`."""
    small: dict[str, Tensor] = {}
    tokens = 0
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        owner = path.name.removesuffix(SUFFIX)
        saved = load_file(path)
        tokens = int(saved.pop(f"{owner}.tokens"))
        if f"{owner}.moment" in saved:
            small |= saved
        else:
            wide.mkdir(exist_ok=True)
            path.rename(wide / path.name)
    return small, tokens


def save(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a file that is there either completely or not at all."""
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary)
    files.put_in_place(temporary, path)

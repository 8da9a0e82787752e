"""How the probe's expert reasons: the base with z folded in, asked without a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adapters import models, svf
from adapters.errors import ProbeMismatch
from adapters.generate import Generator, Request
from adapters.probe import Probe
from demo.ask import DemoQuestion
from policies.gate.grading import grade

if TYPE_CHECKING:
    from daemon.config.settings import Settings


def expert_correct(
    settings: Settings, questions: Sequence[DemoQuestion], max_tokens: int
) -> list[bool] | None:
    """Which questions the expert of the probe's first seed answers; None without SVF factors."""
    base = models.base_hash(settings.model.path)
    probe = _probe(settings, base)
    if probe is None or not probe.has_svf:
        return None
    generator = Generator(settings.model.path)
    for name, matrix in models.matrices(generator.model).items():
        vectors = probe.narrow_vectors(name, matrix.weight)
        matrix.weight.data.copy_(svf.fold(matrix.weight, vectors, probe.deltas(name)[0]))
    requests = [
        Request(generator.encode_chat([{"role": "user", "content": q.prompt}]), max_tokens)
        for q in questions
    ]
    answers = generator.generate(None, requests)
    return [grade("final", a.text, q.answer) for q, a in zip(questions, answers, strict=True)]


def _probe(settings: Settings, base: str) -> Probe | None:
    """The probe in force: the one that was named, else the one that was fitted."""
    for directory in (settings.probe.path, settings.layout.probe(base)):
        try:
            if directory is not None:
                return Probe.load(directory, base)
        except ProbeMismatch:
            continue
    return None

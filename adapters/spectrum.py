"""The spectrum of each matrix in a few bins, and where in it the critical components lie."""

from __future__ import annotations

import torch

from adapters.probe import Probe, Protection
from policies.records import Record

RULE = Protection(kind="svf")


class Spectrum(Record):
    """Runs of neighbouring singular components, from the largest value to the smallest."""

    sigma: tuple[float, ...]
    """Mean singular value of each run."""
    critical: tuple[float, ...]
    """Share of each run that is critical, by the rule of protection `svf`."""


def spectra(probe: Probe, bins: int = 32) -> dict[str, Spectrum]:
    """The spectrum of every matrix of a probe, in at most `bins` runs of about equal length."""
    found = {}
    for name in probe.matrices:
        sigma = probe.sigma(name)
        marked = torch.zeros(len(sigma))
        marked[probe.critical(name, RULE)] = 1.0
        count = min(bins, len(sigma))
        found[name] = Spectrum(
            sigma=_means(sigma, count),
            critical=_means(marked, count),
        )
    return found


def _means(values: torch.Tensor, count: int) -> tuple[float, ...]:
    return tuple(float(run.double().mean()) for run in values.tensor_split(count))

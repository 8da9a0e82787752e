"""What can go wrong in the numerical core, each with one clear line."""

from __future__ import annotations

from policies.errors import PaloradError


class UnusableModel(PaloradError, ValueError):
    """A model directory that cannot be loaded, or has no MLP matrices that palorad knows."""


class ProbeMismatch(PaloradError, ValueError):
    """A probe that was fitted on other weights, or whose files are damaged."""


class NoFreeSpace(PaloradError, ValueError):
    """The protected directions leave fewer free ones than the adapter's rank."""


class BrokenAdapter(PaloradError, ValueError):
    """An adapter that must not be served; `reasons` holds one line each."""

    def __init__(self, where: str, reasons: tuple[str, ...]) -> None:
        self.reasons = reasons
        super().__init__(f"{where}: {'; '.join(reasons)}")


class TrainingDiverged(PaloradError, ArithmeticError):
    """The loss stopped being a finite number."""


class StoreConflict(PaloradError, OSError):
    """A published directory is missing, changed, or stands in the way of another."""


class UnknownAdapter(PaloradError, KeyError):
    """No adapter of that name is resident."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class UnusableExamples(PaloradError, ValueError):
    """Text that cannot be turned into training tokens."""

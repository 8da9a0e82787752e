"""Shares and differences as people read them; settings and JSON hold fractions."""

from __future__ import annotations


def percent(share: float) -> str:
    """A measured share: 0.4167 as "41.7 %"."""
    return f"{100 * share:.1f} %"


def limit(share: float) -> str:
    """A share that was set: 0.8 as "80 %"."""
    return f"{100 * share:.3g} %"


def pp(difference: float) -> str:
    """A margin in percentage points: 0.02 as "2 pp"."""
    return f"{100 * difference:.3g} pp"


def delta(difference: float) -> str:
    """A measured difference in percentage points: 0.0889 as "+8.9 pp"."""
    return f"{round(100 * difference, 1) + 0.0:+.1f} pp"

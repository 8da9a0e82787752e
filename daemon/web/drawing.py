"""Pictures that the server draws: intervals, heat maps and trends as SVG, by classes only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from markupsafe import Markup

from policies.gate.records import Rate

WIDTH: Final = 260
ROW: Final = 18
PAD: Final = 6


def intervals(rates: Sequence[tuple[str, Rate | None]], low: float, high: float) -> Markup:
    """One row for each model: its interval as a bar with the share as a mark, from `low` to
    `high`."""
    height = ROW * len(rates) + 16
    parts = [
        Markup('<svg class="intervals" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            WIDTH, height, "; ".join(f"{who} {_said(rate)}" for who, rate in rates)
        )
    ]
    for share in (low, (low + high) / 2, high):
        x = _x(share, low, high)
        parts.append(
            Markup(
                '<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="2" y2="{1}"/>'
                '<text class="tick" x="{0:.1f}" y="{2}" text-anchor="middle">{3:g}%</text>'
            ).format(x, height - 14, height - 3, round(100 * share, 1))
        )
    for row, (who, rate) in enumerate(rates):
        if rate is None or not rate.items:
            continue
        y = ROW * row + 10
        parts.append(
            Markup(
                '<g class="{0}"><line class="bar" x1="{1:.1f}" x2="{2:.1f}" y1="{3}" y2="{3}"/>'
                '<circle cx="{4:.1f}" cy="{3}" r="4"/></g>'
            ).format(
                who, _x(rate.low, low, high), _x(rate.high, low, high), y, _x(rate.value, low, high)
            )
        )
    return Markup("").join([*parts, Markup("</svg>")])


def bounds(rates: Sequence[Rate | None]) -> tuple[float, float]:
    """A scale in whole tens of percent that holds all intervals."""
    known = [rate for rate in rates if rate is not None and rate.items]
    if not known:
        return 0.0, 1.0
    low = int(10 * min(rate.low for rate in known)) / 10
    high = min(1.0, int(10 * max(rate.high for rate in known) + 0.9999) / 10)
    return (low, high) if high > low else (max(0.0, low - 0.1), low or 1.0)


def heat_row(shares: Sequence[float | None], asked: Sequence[int]) -> Markup:
    """The cells of a row of a heat map, in eleven shades, or none where nothing was asked.

    A map has a thousand of them and nothing in them but numbers: a template would take long.
    """
    cells = [
        f'<td class="heat-{round(10 * share)}"><span title="{count} question'
        f'{"" if count == 1 else "s"}">{round(100 * share)}</span></td>'
        if share is not None
        else '<td class="heat-none"><span class="visually-hidden">not asked</span></td>'
        for share, count in zip(shares, asked, strict=True)
    ]
    return Markup("".join(cells))  # noqa: S704 - numbers alone


def trend(points: Sequence[tuple[str, Rate]], label: str) -> Markup:
    """Shares with their intervals over revisions, as a line in a band."""
    low, high = bounds([rate for _, rate in points])
    width, height = 720, 150
    left, bottom = 44, height - 22

    def x(at: int) -> float:
        return left + (width - left - 12) * (at + 0.5) / max(1, len(points))

    def y(share: float) -> float:
        return bottom - (bottom - 8) * (share - low) / (high - low)

    parts = [
        Markup('<svg class="trend" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            width, height, f"{label}: " + "; ".join(f"{at} {_said(rate)}" for at, rate in points)
        )
    ]
    parts += [
        Markup(
            '<line class="grid" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/>'
            '<text class="tick" x="{3}" y="{4:.1f}" text-anchor="end">{5:g}%</text>'
        ).format(left, width - 8, y(share), left - 6, y(share) + 4, round(100 * share, 1))
        for share in (low, (low + high) / 2, high)
    ]
    for at, (name, rate) in enumerate(points):
        parts.append(
            Markup(
                '<line class="bar" x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{2:.1f}"/>'
                '<circle cx="{0:.1f}" cy="{3:.1f}" r="4"/>'
            ).format(x(at), y(rate.low), y(rate.high), y(rate.value))
        )
        if len(points) <= 16 or at % (len(points) // 12) == 0:
            parts.append(
                Markup(
                    '<text class="tick" x="{0:.1f}" y="{1}" text-anchor="middle">{2}</text>'
                ).format(x(at), height - 6, name)
            )
    line = " ".join(f"{x(at):.1f},{y(rate.value):.1f}" for at, (_, rate) in enumerate(points))
    parts.append(Markup('<polyline points="{}"/>').format(line))
    return Markup("").join([*parts, Markup("</svg>")])


def _x(share: float, low: float, high: float) -> float:
    return PAD + 10 + (WIDTH - 2 * PAD - 20) * (share - low) / (high - low)


def _said(rate: Rate | None) -> str:
    if rate is None or not rate.items:
        return "not asked"
    return f"{100 * rate.value:.1f} % ({100 * rate.low:.1f} to {100 * rate.high:.1f})"

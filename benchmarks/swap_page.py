"""The figures of results/swap.md, from results/swap.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import pages

PAGE = Path(__file__).parent / "results" / "swap.md"


def fill(report: Mapping[str, Any], page: Path = PAGE) -> None:
    """Rewrite the table between its markers in `page`."""
    pages.fill(page, {"swap": table(report)})


def table(report: Mapping[str, Any]) -> str:
    """What went wrong, how long swaps took, what the middleware costs."""
    low, high = report["throughput_ratio_interval"]
    rows = {
        "promotions, rollbacks, forward again": (
            f"{report['promotions']}, {report['rollbacks']}, {report['forward_again']}"
        ),
        "requests meanwhile, of clients": f"{report['requests']:,}, {report['clients']}",
        "requests that failed": f"{report['failed']}",
        "answers that were not those of the revision in their header": f"{report['mixed']}",
        "answers of another revision after a flip was done": (
            f"{report['wrong_version_after_flip']}"
        ),
        "from decision to first new token, median / slowest": (
            f"{report['swap_p50_s']:.2f} s / {report['swap_p99_s']:.1f} s"
        ),
        "rollback, median / slowest": (
            f"{report['rollback_p50_s']:.2f} s / {report['rollback_p99_s']:.1f} s"
        ),
        "stopping and starting the server instead": f"{report['restart_s']:.1f} s",
        "memory before / after": (
            f"{report['memory_before_mb']:,.0f} MB / {report['memory_after_mb']:,.0f} MB"
        ),
        "throughput with the middleware, relative to without": (
            f"{report['throughput_ratio']:.3f} [{low:.3f}, {high:.3f}] "
            f"({report['throughput_requests']:,} requests)"
        ),
        "the middleware's own time in a request, median / 99th percentile": (
            f"{report['middleware_p50_ms']:.2f} ms / {report['middleware_p99_ms']:.1f} ms "
            f"of {report['request_p50_ms']:.0f} ms"
        ),
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| what | measured |", "|---|---|", *lines])

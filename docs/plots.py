"""Writes docs/scaling.svg from the table of workers in benchmarks/RESULTS.md: `python docs/plots.py`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "benchmarks" / "RESULTS.md"
TARGET = Path(__file__).parent / "scaling.svg"
_ROW = re.compile(r"^\| efficiency of (?P<workers>[\d, ]+) workers .*?\| (?P<shares>[\d.]+(?:, [\d.]+)*)", re.MULTILINE)
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 300, 70, 48, 20
_STYLE = (
    "text{font-family:system-ui,sans-serif;font-size:13px;fill:#1b1f2a;text-anchor:middle} .y{text-anchor:end} "
    ".a{fill:none;stroke:#9aa3b5} .i{fill:none;stroke:#9aa3b5;stroke-dasharray:5 4} "
    ".m{fill:none;stroke:#3b5bdb;stroke-width:2} circle{fill:#3b5bdb} svg{background:#fff}"
)


def measured(results: str) -> list[tuple[int, float]]:
    """Workers, and the throughput of all of them in that of one, as the results say."""
    row = _ROW.search(results)
    if row is None:
        raise ValueError("benchmarks/RESULTS.md has no row `efficiency of … workers`")
    workers = [int(count) for count in row["workers"].split(",")]
    shares = [float(share) for share in row["shares"].split(",")]
    return [(count, count * share) for count, share in zip(workers, shares, strict=True)]


def scaling_svg(points: Sequence[tuple[int, float]]) -> str:
    """Throughput over workers, both axes doubling, beside what twice the workers would give at best."""
    most = math.log2(points[-1][0])

    def x(workers: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 24) * math.log2(workers) / most

    def y(speed: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * math.log2(speed) / most

    ticks = [2**power for power in range(math.floor(most) + 1)]
    told = ", ".join(f"{speed:.1f} with {workers}" for workers, speed in points)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="Throughput of verifier workers in that of one: {told}">',
        f"<style>{_STYLE}</style>",
        f'<path class="a" d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - 24}"/>',
    ]
    for tick in ticks:
        parts.append(f'<text x="{x(tick):.0f}" y="{_HEIGHT - _BOTTOM + 18}">{tick}</text>')
        parts.append(f'<text class="y" x="{_LEFT - 8}" y="{y(tick) + 4:.0f}">{tick}</text>')
    parts.append(f'<text x="{(_LEFT + _WIDTH) / 2:.0f}" y="{_HEIGHT - 8}">workers</text>')
    parts.append(f'<text x="{_LEFT + 112}" y="{_TOP + 8}">throughput, in that of one worker</text>')
    parts.append(f'<path class="i" d="M{x(1):.1f} {y(1):.1f}L{x(2**most):.1f} {y(2**most):.1f}"/>')
    line = "L".join(f"{x(workers):.1f} {y(speed):.1f}" for workers, speed in points)
    parts.append(f'<path class="m" d="M{line}"/>')
    parts += [f'<circle cx="{x(workers):.1f}" cy="{y(speed):.1f}" r="4"/>' for workers, speed in points]
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    TARGET.write_text(scaling_svg(measured(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")

"""Small charts as inline SVG: accuracies with intervals, shares, curves. Pure functions over numbers.

Colours are classes of the page's style, so that they follow light and dark. Every chart has a name for who cannot see
it; the numbers stand in a table beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

COLOURS = 6  # classes c0 … c5 of the style
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 720.0, 52.0, 14.0, 14.0, 46.0


@dataclass(frozen=True)
class Estimate:
    """A share with its interval."""

    value: float
    low: float
    high: float


def estimates_chart(
    name: str, groups: Sequence[str], series: Mapping[str, Mapping[str, Estimate]], height: float = 260
) -> Markup:
    """Points with intervals: a column of the chart for each group, a colour for each series (series -> group)."""
    top = min(1.0, 1.08 * max((e.high for points in series.values() for e in points.values()), default=1.0)) or 1.0
    plot = _Plot(height, 0.0, max(len(groups), 1), 0.0, top)
    parts = [plot.grid(percent=True)]
    for column, group in enumerate(groups):
        parts.append(plot.label(column + 0.5, group))
    for number, (label, points) in enumerate(series.items()):
        offset = (number + 1) / (len(series) + 1)
        for column, group in enumerate(groups):
            if (point := points.get(group)) is not None:
                x = plot.x(column + offset)
                y, low, high = plot.y(point.value), plot.y(point.low), plot.y(point.high)
                told = f"{label}, {group}: {point.value:.3f} ({point.low:.3f} to {point.high:.3f})"
                parts.append(
                    Markup(
                        '<g class="{}"><title>{}</title>'
                        '<path d="M{:.1f} {:.1f}V{:.1f}M{:.1f} {:.1f}h8M{:.1f} {:.1f}h8"/>'
                    ).format(_colour(number), told, x, low, high, x - 4, low, x - 4, high)
                    + Markup('<circle cx="{:.1f}" cy="{:.1f}" r="4.5"/></g>').format(x, y)
                )
    return _svg(name, height, parts) + legend(list(series))


def lines_chart(
    name: str, series: Mapping[str, Sequence[tuple[float, float]]], x_title: str, height: float = 240
) -> Markup:
    """Curves of (x, y) points; what is not finite is left out."""
    clean = {k: [(x, y) for x, y in v if math.isfinite(x) and math.isfinite(y)] for k, v in series.items()}
    clean = {label: points for label, points in clean.items() if points}
    every = [point for points in clean.values() for point in points]
    if not every:
        return Markup("")
    ys = [y for _, y in every]
    plot = _Plot(height, 0.0, max(max(x for x, _ in every), 1.0), min(0.0, min(ys)), max(max(ys), min(ys) + 1e-9))
    parts = [plot.grid(), plot.axis(x_title)]
    for number, (label, points) in enumerate(clean.items()):
        path = "L".join(f"{plot.x(x):.1f} {plot.y(y):.1f}" for x, y in thinned(points))
        parts.append(Markup('<g class="{}"><title>{}</title><path d="M{}"/></g>').format(_colour(number), label, path))
    return _svg(name, height, parts) + legend(list(clean))


def shares_chart(name: str, rows: Sequence[tuple[str, Mapping[str, int]]]) -> Markup:
    """One bar a row, cut into the shares of its counts; the classes of the parts are their names."""
    height = 8 + 26.0 * len(rows)
    parts = []
    for number, (label, counts) in enumerate(rows):
        y, x, total = 4 + 26 * number, 150.0, sum(counts.values())
        parts.append(Markup('<text class="row" x="144" y="{:.0f}">{}</text>').format(y + 15, _short(label, 20)))
        for part, count in counts.items():
            width = (_WIDTH - 160) * count / total if total else 0
            parts.append(
                Markup('<rect class="{}" x="{:.1f}" y="{}" width="{:.1f}" height="20"><title>{}</title></rect>').format(
                    part, x, y, width, f"{label}: {part} {count} of {total}"
                )
            )
            x += width
    names = dict.fromkeys(part for _, counts in rows for part in counts)
    keys = Markup("").join(Markup('<span class="key"><i class="{0}"></i>{0}</span> ').format(part) for part in names)
    return _svg(name, height, parts) + Markup('<p class="legend">{}</p>').format(keys)


def legend(names: Sequence[str]) -> Markup:
    """The colours of the series."""
    keys = [
        Markup('<span class="key"><i class="{}"></i>{}</span> ').format(_colour(number), name)
        for number, name in enumerate(names)
    ]
    return Markup('<p class="legend">{}</p>').format(Markup("").join(keys))


def thinned(points: Sequence[tuple[float, float]], most: int = 240) -> list[tuple[float, float]]:
    """At most `most` points: each the mean of neighbours, so that a curve is smoothed and no peak is made up."""
    if len(points) <= most:
        return list(points)
    size = len(points) / most
    cut = [points[int(i * size) : max(int(i * size) + 1, int((i + 1) * size))] for i in range(most)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in cut]


@dataclass(frozen=True)
class _Plot:
    """The way from data to the picture."""

    height: float
    left: float
    right: float
    bottom: float
    top: float

    def x(self, value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - self.left) / (self.right - self.left)

    def y(self, value: float) -> float:
        share = (value - self.bottom) / (self.top - self.bottom)
        return self.height - _BOTTOM - (self.height - _TOP - _BOTTOM) * share

    def grid(self, percent: bool = False) -> Markup:
        lines = []
        for value in _ticks(self.bottom, self.top):
            text = (
                f"{100 * value:.0f} %"
                if percent and value * 100 >= 1
                else f"{100 * value:g} %"
                if percent
                else f"{value:g}"
            )
            y = self.y(value)
            lines.append(
                Markup('<path class="grid" d="M{} {:.1f}H{}"/><text class="row" x="{}" y="{:.1f}">{}</text>').format(
                    _LEFT, y, _WIDTH - _RIGHT, _LEFT - 6, y + 4, text
                )
            )
        return Markup("").join(lines)

    def label(self, at: float, text: str) -> Markup:
        return Markup('<text class="below" x="{:.1f}" y="{:.1f}">{}</text>').format(
            self.x(at), self.height - _BOTTOM + 18, _short(text, 14)
        )

    def axis(self, title: str) -> Markup:
        y = self.height - _BOTTOM + 18
        marks = [self.label(value, f"{value:g}") for value in _ticks(self.left, self.right)]
        middle = Markup('<text class="below" x="{:.1f}" y="{:.1f}">{}</text>').format(_WIDTH / 2, y + 18, title)
        return Markup("").join([*marks, middle])


def _colour(number: int) -> str:
    """The classes of a series: a colour, and dashes when the colours are used up."""
    return f"c{number % COLOURS} d{number // COLOURS % 3}"


def _ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    span = high - low
    step = 10 ** math.floor(math.log10(span / wanted)) if span > 0 else 1.0
    step = next((step * factor for factor in (1, 2, 5, 10) if span / (step * factor) <= wanted), step)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _svg(name: str, height: float, parts: Sequence[Markup]) -> Markup:
    return Markup(
        '<div class="scroll" tabindex="0" role="region" aria-label="{0}">'
        '<svg viewBox="0 0 {1:.0f} {2:.0f}" role="img" aria-label="{0}">{3}</svg></div>'
    ).format(escape(name), _WIDTH, height, Markup("").join(parts))

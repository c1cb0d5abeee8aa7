"""The table of a comparison: accuracies with intervals, paired with the start and with the control."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from spftsql.comparison.measuring import CONTROL, VBI, Measured, Method
from spftsql.evaluation.metrics import mcnemar, mean_interval, paired_difference, wilson

HEADER = ("method", "EX", "against start", "against control", "gate", "served")


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Gain:
    """Accuracy gained over another model on the same questions; how many only one of the two answers right, exact p."""

    gain: Estimate
    only_method: int
    only_other: int
    p: float


@dataclass(frozen=True)
class MethodRow:
    """A method over all seeds. `control` is None for the control itself, and where that was not measured."""

    method: Method
    accuracy: Estimate
    start: Gain
    control: Gain | None
    gate: Mapping[str, int]
    served: float
    seeds: tuple[Mapping[str, Any], ...]


def method_rows(measured: Sequence[Measured]) -> list[MethodRow]:
    """A row for each method, in the order in which they come.

    Intervals are Student's over the seeds; with one seed Wilson's for an accuracy, and Bonett and Price's for a gain.
    p is McNemar's over the questions of all seeds together, as if the seeds' answers to one question were independent.
    """
    controls = {one.seed: one.right for one in measured if one.method == CONTROL}
    rows = []
    for method in dict.fromkeys(one.method for one in measured):
        own = [one for one in measured if one.method == method]
        paired = [(one.right, controls[one.seed]) for one in own if one.seed in controls]
        starts = [(one.right, one.start) for one in own]
        rows.append(
            MethodRow(
                method=method,
                accuracy=_accuracy([one.right for one in own]),
                start=_gain(starts),
                control=_gain(paired) if paired and method != CONTROL else None,
                gate=dict(Counter(one.decision.outcome if one.decision else "not asked" for one in own)),
                served=sum(_share(one.served) for one in own) / len(own),
                seeds=tuple(_of_seed(one, controls.get(one.seed)) for one in own),
            )
        )
    return rows


def cells(row: MethodRow, separator: str = " ") -> tuple[str, ...]:
    """A row as text, with `separator` between figures and their intervals."""
    several = len(row.seeds) > 1
    accuracy = row.accuracy
    gate = f",{separator}".join(f"{outcome} {count}" if several else outcome for outcome, count in row.gate.items())
    itself = row.method == VBI and not (row.start.only_method or row.start.only_other)
    return (
        row.method,
        f"{accuracy.value:.3f}{separator}{accuracy.low:.3f}–{accuracy.high:.3f}",
        "–" if itself else _gained(row.start, separator),
        "–" if row.control is None else _gained(row.control, separator),
        gate,
        f"{row.served:.3f}",
    )


def notes_of(measured: Sequence[Measured], exam: str) -> list[str]:
    """What the table must be read with."""
    seeds = sorted({one.seed for one in measured})
    n = max(len(one.right) for one in measured)
    found = [
        f"{n} {exam} questions, seeds {', '.join(map(str, seeds))}. EX is that of each method's own last candidate, "
        "whatever the gate decides; served is that of what the gate lets through. The start is the candidate that "
        "self-play begins with; the control is continued SFT on the same questions for as many steps (sft)."
    ]
    if len(seeds) > 1:
        found.append(
            "Intervals are over the seeds (Student); p is exact McNemar over the questions of all seeds together."
        )
    if not any(one.method == CONTROL for one in measured):
        found.append("The control was not measured: add sft to --methods.")
    found += [f"Seed {one.seed}: {note}." for one in measured for note in one.notes]
    return found


def tree(measured: Sequence[Measured], exam: str) -> dict[str, Any]:
    """The comparison as a plain tree."""
    return {
        "exam": exam,
        "seeds": sorted({one.seed for one in measured}),
        "methods": [asdict(row) for row in method_rows(measured)],
    }


def markdown(measured: Sequence[Measured], exam: str, title: str) -> str:
    """The comparison for `table.md`."""
    lines = [f"### {title}", "", f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
    lines += [f"| {' | '.join(cells(row))} |" for row in method_rows(measured)]
    return "\n".join([*lines, "", *(f"{note}\n" for note in notes_of(measured, exam))])


def _of_seed(one: Measured, control: Mapping[str, bool] | None) -> dict[str, Any]:
    gains = {"start": one.start} | ({"control": control} if control is not None and one.method != CONTROL else {})
    return {
        "seed": one.seed,
        "candidate": one.candidate,
        "n": len(one.right),
        "right": sum(one.right.values()),
        "accuracy": _share(one.right),
        "verdict_of_gate": None if one.decision is None else asdict(one.decision),
        "served": one.served_candidate,
        "served_accuracy": _share(one.served),
        **{f"against_{name}": asdict(_gain([(one.right, other)])) for name, other in gains.items()},
        "notes": list(one.notes),
    }


def _share(right: Mapping[str, bool]) -> float:
    return sum(right.values()) / max(len(right), 1)


def _accuracy(by_seed: Sequence[Mapping[str, bool]]) -> Estimate:
    if len(by_seed) > 1:
        mean, low, high = mean_interval([_share(right) for right in by_seed])
        return Estimate(mean, max(low, 0.0), min(high, 1.0))
    (right,) = by_seed
    return Estimate(_share(right), *wilson(sum(right.values()), len(right)))


def _gain(by_seed: Sequence[tuple[Mapping[str, bool], Mapping[str, bool]]]) -> Gain:
    """What the first of each pair gains over the second, on the questions that both have answered."""
    marks = [
        ([own[name] for name in own if name in other], [other[name] for name in own if name in other])
        for own, other in by_seed
    ]
    test = mcnemar([mark for own, _ in marks for mark in own], [mark for _, other in marks for mark in other])
    differences = [paired_difference(other, own) for own, other in marks]
    values = differences[0] if len(marks) == 1 else mean_interval([difference for difference, _, _ in differences])
    return Gain(Estimate(*values), test.only_a, test.only_b, test.p)


def _gained(gain: Gain, separator: str) -> str:
    value = gain.gain
    return f"{value.value:+.3f}, p {gain.p:.2g}{separator}{value.low:+.3f}…{value.high:+.3f}"

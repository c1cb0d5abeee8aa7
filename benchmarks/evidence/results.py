"""Measured cells as lines of a file, and the section of RESULTS.md that is written from them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.evidence.cells import LABELLED, Cell, Method, Unit, cell, methods_of
from benchmarks.measure import markdown
from spftsql.evaluation.metrics import mcnemar

BEGIN, END = "<!-- evidence: begin -->", "<!-- evidence: end -->"
_TITLES = {"sft": "SFT", "control": "SFT, same steps", "vbi-1": "+ 1 round", "vbi-2": "+ 2 rounds"}
_T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True)
class Measured:
    """A finished cell: for each test question whether it was right, and whether the labels have its structure."""

    key: str
    name: str
    right: str  # a digit per question: 1 or 0
    covered: str
    pairs: int  # synthetic pairs that were trained on in the last round
    seconds: float  # of the whole run that gave the cell, what was there already not counted
    machine: str

    def accuracy(self, covered: bool | None = None) -> float | None:
        """Execution accuracy, over the questions whose structure is (or is not) covered; None where there are none."""
        marks = [r == "1" for r, c in zip(self.right, self.covered, strict=True) if covered in (None, c == "1")]
        return sum(marks) / len(marks) if marks else None

    @property
    def marks(self) -> list[bool]:
        """Right or wrong, question by question."""
        return [mark == "1" for mark in self.right]


def read_results(path: Path) -> dict[str, Measured]:
    """The finished cells by key; a later line wins."""
    if not path.is_file():
        return {}
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return {row["key"]: Measured(**row) for row in rows}


def append_results(path: Path, found: Iterable[Measured]) -> None:
    """Adds finished cells to the file."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(one)) + "\n" for one in found)


def section(units: Sequence[Unit], done: Mapping[str, Measured], reasons: Mapping[Unit, str]) -> str:
    """The tables: a row for each method and setting, over its seeds, and what is missing.

    The control of a row is SFT for as many steps, paired by question and seed. `reasons` says why units cannot run.
    """
    rows = []
    for setting, members in _settings(units).items():
        for method in methods_of(members[0]):
            rows.append(_row(setting, method, members, done, reasons))
    header = ("data", "labels", "values linked", "new SQL", "filter", "method", "EX", "covered", "uncovered",
              "gain over same steps", "p by seed", "seeds")  # fmt: skip
    return "\n".join(
        [
            BEGIN,
            "",
            "EX is the mean over seeds with its 95 % interval (Student); covered: test questions whose structure (SQL "
            "but for literals) a label has. The gain is paired with SFT on the same labels for the same number of "
            "steps: the mean over seeds with its interval, and exact McNemar for each seed, uncorrected. A seed is "
            "another draw of labels, weights and samples.",
            "",
            markdown(rows, header),
            "",
            END,
        ]
    )


def write_section(path: Path, text: str) -> None:
    """Puts the section in the place of the one in the file, or at its end."""
    whole = path.read_text(encoding="utf-8")
    if BEGIN in whole and END in whole:
        before, _, rest = whole.partition(BEGIN)
        whole = before + text + rest.partition(END)[2]
    else:
        whole = f"{whole.rstrip()}\n\n## Evidence\n\n    python -m benchmarks.evidence\n\n{text}\n"
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(whole, encoding="utf-8")
    temporary.replace(path)


def gain(cells: Sequence[Cell], done: Mapping[str, Measured]) -> tuple[list[float], list[float]]:
    """For each seed whose control is there too: accuracy gained over it, and McNemar's p.

    Without labels the base model takes the place of the control.
    """
    gains, ps = [], []
    for one in cells:
        control = done.get(cell(one.unit, "control" if one.unit.label_share else "sft").key)
        own = done.get(one.key)
        if own is None or control is None:
            continue
        gains.append(sum(own.marks) / len(own.marks) - sum(control.marks) / len(control.marks))
        ps.append(mcnemar(own.marks, control.marks).p)
    return gains, ps


def mean_with_interval(values: Sequence[float], signed: bool = False) -> str:
    """The mean of some seeds, and Student's 95 % interval from two on."""
    if not values:
        return "–"
    mean = statistics.fmean(values)
    shape = "+.3f" if signed else ".3f"
    if len(values) == 1:
        return f"{mean:{shape}}"
    t = _T_975.get(len(values) - 1, 1.96)
    margin = t * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:{shape}} ({mean - margin:{shape}} to {mean + margin:{shape}})"


def _settings(units: Sequence[Unit]) -> dict[tuple[str, ...], list[Unit]]:
    """Units that differ in the seed only."""
    found: dict[tuple[str, ...], list[Unit]] = {}
    for unit in units:
        setting = (
            f"{unit.data}, {unit.split}",
            f"{unit.label_share} %",
            "yes" if unit.linking else "no",
            unit.templates,
            unit.filter,
        )
        found.setdefault(setting, []).append(unit)
    return found


def _row(
    setting: tuple[str, ...],
    method: Method,
    units: Sequence[Unit],
    done: Mapping[str, Measured],
    reasons: Mapping[Unit, str],
) -> tuple[str, ...]:
    wanted = [cell(unit, method) for unit in units]
    found = [done[one.key] for one in wanted if one.key in done]
    labelled = method in LABELLED
    head = (
        *setting[:3],
        *(("–", "–") if labelled else setting[3:]),
        "base model" if labelled and not units[0].label_share else _TITLES[method],
    )
    missing = [one.unit.seed for one in wanted if one.key not in done]
    if not found:
        why = next((reasons[unit] for unit in units if unit in reasons), "")
        return (*head, "missing" + (f": {why}" if why else ""), "", "", "", "", "0")
    gains, ps = gain(wanted, done) if not labelled else ([], [])
    seeds = str(len(found)) + (f" (missing: {', '.join(map(str, missing))})" if missing else "")
    parts = [[value for one in found if (value := one.accuracy(kind)) is not None] for kind in (None, True, False)]
    return (
        *head,
        mean_with_interval(parts[0]),
        *(f"{statistics.fmean(part):.3f}" if part else "–" for part in parts[1:]),
        mean_with_interval(gains, signed=True) if gains else "–",
        ", ".join(f"{p:.2g}" for p in ps) or "–",
        seeds,
    )

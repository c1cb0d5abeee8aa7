"""Measured cells as lines of a file, and the section of RESULTS.md that is written from them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.evidence.cells import LABELLED, LONGER, Cell, Method, Unit, cell, methods_of
from benchmarks.evidence.self_play import PlayCell, PlayUnit, play_cell, play_cells
from benchmarks.measure import markdown
from spftsql.evaluation.metrics import mcnemar

BEGIN, END = "<!-- evidence: begin -->", "<!-- evidence: end -->"
Against = Literal["start", "control"]
AGAINST: tuple[Against, ...] = ("start", "control")
_TITLES = {"sft": "SFT", "control": "SFT, same steps", "vbi-1": "+ 1 round", "vbi-2": "+ 2 rounds"}
_T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True)
class Measured:
    """A finished cell: for each test question whether it was right, and whether the labels have its structure."""

    key: str
    name: str
    right: str  # a digit per question: 1 or 0
    covered: str
    pairs: int  # synthetic pairs that were trained on in the last round, or rows of self-play in the last iteration
    seconds: float  # of the whole run that gave the cell, what was there already not counted
    machine: str
    start: str | None = None  # of self-play: what the start of the same run had right; None where that was not kept

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


def section(
    units: Sequence[Unit | PlayUnit], done: Mapping[str, Measured], reasons: Mapping[Unit | PlayUnit, str]
) -> str:
    """The tables: a row for each method and setting, over its seeds, and what is missing.

    The control of a row is SFT for as many steps, paired by question and seed. `reasons` says why units cannot run.
    """
    rows = []
    for setting, members in _settings([unit for unit in units if isinstance(unit, Unit)]).items():
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
            "another draw of labels, weights and samples. A round has 600 pairs and 700 steps unless the name of new "
            "SQL says more (`benchmarks/evidence/cells.py`).",
            "",
            markdown(rows, header),
            "",
            *_self_play([unit for unit in units if isinstance(unit, PlayUnit)], done, reasons),
            END,
        ]
    )


def _self_play(
    units: Sequence[PlayUnit], done: Mapping[str, Measured], reasons: Mapping[Unit | PlayUnit, str]
) -> list[str]:
    """The table of self-play; nothing without units."""
    if not units:
        return []
    rows: dict[tuple[object, ...], list[PlayCell]] = {}
    for one in dict.fromkeys(one for unit in units for one in play_cells(unit)):
        rows.setdefault((one.unit.setting, one.player, one.iteration, one.voted), []).append(one)
    header = ("setting", "mode", "iteration", "answers", "EX", "gain over start", "p by seed", "gain over control",
              "p by seed", "seeds")  # fmt: skip
    return [
        "### Self-play",
        "",
        "GeoQuery, question split, 30 % of the labels, values linked. The start is the model of one round of VBI-FT on "
        "pairs made of labels (that of the labels alone where it is the better one on the selection set); "
        "the control is continued SFT (`sft`) in the same setting, as many steps on the same "
        "questions. Each mode's model is shown as it is, without the gate. Greedy answers and the vote of 8 samples on "
        "what they return, are of the same models; both are paired with the same kind of answers of the start and of "
        "the control. Intervals are over the seeds (95 %, Student); p is exact McNemar for each seed, uncorrected. A "
        "setting is the recipe `geoquery`, with a start of 600 pairs and 700 steps, but for what its name says "
        "(`benchmarks/evidence/self_play.py`).",
        "",
        markdown([_play_row(cells, done, reasons) for cells in rows.values()], header),
        "",
    ]


def _play_row(
    cells: Sequence[PlayCell], done: Mapping[str, Measured], reasons: Mapping[Unit | PlayUnit, str]
) -> tuple[str, ...]:
    """A mode in a setting: its cells differ in the seed only."""
    one = cells[0]
    head = (one.unit.setting, one.player, str(one.iteration), "voted" if one.voted else "greedy")
    found = [done[cell.key] for cell in cells if cell.key in done]
    missing = [str(cell.unit.seed) for cell in cells if cell.key not in done]
    if not found:
        why = next((reasons[cell.unit] for cell in cells if cell.unit in reasons), "")
        return (*head, "missing" + (f": {why}" if why else ""), "", "", "", "", "0")
    figures: list[str] = []
    for against in AGAINST:
        gains, ps = play_gain(cells, done, against)
        figures += [mean_with_interval(gains, signed=True), ", ".join(f"{p:.2g}" for p in ps) or "–"]
    seeds = str(len(found)) + (f" (missing: {', '.join(missing)})" if missing else "")
    accuracies = [value for measured in found if (value := measured.accuracy()) is not None]
    return (*head, mean_with_interval(accuracies), *figures, seeds)


def play_gain(
    cells: Sequence[PlayCell], done: Mapping[str, Measured], against: Against
) -> tuple[list[float], list[float]]:
    """For each seed where both are there: accuracy gained over the start, or over the control, and McNemar's p.

    A cell is paired with the start of its own run, and with a control from that start: a start that other code or
    another machine trained is another model.
    """
    pairs = []
    for one in cells:
        if one.player == "start" or (against == "control" and one.player == "sft"):
            continue
        measured = done.get(one.key)
        if against == "start" and measured is not None and measured.start is not None:
            other: Measured | None = replace(measured, right=measured.start)
        elif against == "start":
            other = done.get(play_cell(one.unit, "start", 0, one.voted).key)
        else:
            other = done.get(play_cell(one.unit, "sft", one.iteration, one.voted).key)
            if measured is not None and other is not None and measured.start != other.start:
                continue
        pairs.append((measured, other))
    return _gains(pairs)


def write_section(path: Path, text: str) -> None:
    """Puts the section in the place of the one in the file, or at its end; a file that is not there is written."""
    whole = path.read_text(encoding="utf-8") if path.exists() else ""
    if BEGIN in whole and END in whole:
        before, _, rest = whole.partition(BEGIN)
        whole = before + text + rest.partition(END)[2]
    else:
        whole = f"{whole.rstrip()}\n\n## Evidence\n\n    python -m benchmarks.evidence\n\n{text}\n".lstrip()
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(whole, encoding="utf-8")
    temporary.replace(path)


def gain(cells: Sequence[Cell], done: Mapping[str, Measured]) -> tuple[list[float], list[float]]:
    """For each seed whose control is there too: accuracy gained over it, and McNemar's p.

    Without labels the base model takes the place of the control.
    """
    controls = [done.get(cell(one.unit, "control" if one.unit.label_share else "sft").key) for one in cells]
    return _gains(list(zip([done.get(one.key) for one in cells], controls, strict=True)))


def _gains(pairs: Sequence[tuple[Measured | None, Measured | None]]) -> tuple[list[float], list[float]]:
    gains, ps = [], []
    for own, other in pairs:
        if own is None or other is None:
            continue
        gains.append(sum(own.marks) / len(own.marks) - sum(other.marks) / len(other.marks))
        ps.append(mcnemar(own.marks, other.marks).p)
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
    reasons: Mapping[Unit | PlayUnit, str],
) -> tuple[str, ...]:
    wanted = [cell(unit, method) for unit in units]
    found = [done[one.key] for one in wanted if one.key in done]
    labelled = method in LABELLED
    head = (
        *setting[:3],
        *(("–", "–") if labelled and units[0].templates not in LONGER else setting[3:]),
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

"""The table at the end of a run: execution accuracy on the test set, which nothing else reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.table import Table as RichTable

from spftsql.errors import UserError
from spftsql.evaluation.metrics import mcnemar, wilson
from spftsql.runs import Run
from spftsql.selfplay.candidates import Answer
from spftsql.selfplay.gate import Decision

TableExam = Literal["test", "selection"]
_ABOUT = {"test": "", "selection": "No test set: accuracy on the synthetic questions of the selection set."}


@dataclass(frozen=True)
class Row:
    """One method: accuracy on `n` test questions with a 95 % Wilson interval, and exact McNemar against the control."""

    method: str
    candidate: str
    n: int
    correct: int
    accuracy: float
    low: float
    high: float
    p_control: float | None
    verdicts: dict[str, int]


@dataclass(frozen=True)
class Result:
    """What a run ends with. `served` is the candidate that the gate lets through; `exam` what the rows are about.

    `synthetic` are the same comparisons as `decisions` on the selection set, which decide nothing; `notes` say why
    self-play ended early.
    """

    rows: tuple[Row, ...]
    decisions: tuple[Decision, ...]
    served: str
    served_path: str
    databases: dict[str, str]
    exam: TableExam = "test"
    synthetic: tuple[Decision, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def about(self) -> str:
        """What the table must be read with; empty where it is about test questions."""
        return _ABOUT[self.exam]

    @property
    def sentences(self) -> list[str]:
        """What belongs below the table: what it is about, what the gate decided, what else there is to know."""
        found = [self.about] if self.about else []
        found += [decision.sentence() for decision in self.decisions]
        found += [f"Synthetic questions, which decide nothing: {beside.finding()}." for beside in self.synthetic]
        return found + [f"{note[0].upper()}{note[1:]}." for note in self.notes]

    def to_json(self) -> str:
        """The result as JSON; `from_json` reads it back."""
        return json.dumps(asdict(self), indent=2)

    @staticmethod
    def from_json(text: str) -> Result:
        """The result that `to_json` wrote."""
        tree = json.loads(text)
        rows = tuple(Row(**row) for row in tree["rows"])
        decisions, synthetic = (
            tuple(Decision(**decision) for decision in tree.get(name, ())) for name in ("decisions", "synthetic")
        )
        named = {name: tree[name] for name in ("served", "served_path", "databases", "exam")}
        return Result(rows, decisions, **named, synthetic=synthetic, notes=tuple(tree.get("notes", ())))


OUTCOMES = "outcomes.json"


@dataclass(frozen=True)
class Outcomes:
    """By candidate and question of `exam` whether the answer was right: for paired tests with other runs.

    `start` is the candidate that self-play began with. Answers with a fault are left out.
    """

    exam: TableExam
    start: str
    right: Mapping[str, Mapping[str, bool]]

    @staticmethod
    def of(exam: TableExam, start: str, answers: Mapping[str, Sequence[Answer]]) -> Outcomes:
        """Those of everybody's answers."""
        right = {name: {one.example.id: one.correct for one in own if one.known} for name, own in answers.items()}
        return Outcomes(exam, start, right)


def write_outcomes(run: Run, outcomes: Outcomes) -> None:
    """Keeps them in the run directory."""
    run.write(OUTCOMES, json.dumps(asdict(outcomes)))


def read_outcomes(run_directory: Path) -> Outcomes:
    """Those that `write_outcomes` wrote."""
    return Outcomes(**json.loads((run_directory / OUTCOMES).read_text(encoding="utf-8")))


def load_result(run_directory: Path) -> Result:
    """The result of a finished run. Raises `UserError` where there is none."""
    path = run_directory / "result.json"
    if not path.is_file():
        raise UserError(f"{run_directory} holds no finished run (no result.json)")
    try:
        return Result.from_json(path.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged or of another version: remove it and run the recipe again") from None


def method_row(method: str, candidate: str, answers: Sequence[Answer], control: Sequence[Answer] | None) -> Row:
    """A row from a candidate's answers to the test questions; those with a fault are in the verdicts, not in `n`."""
    known = [answer for answer in answers if answer.known]
    correct = sum(answer.correct for answer in known)
    low, high = wilson(correct, len(known))
    p = None
    if control is not None:
        other: Mapping[str, bool] = {answer.example.id: answer.correct for answer in control if answer.known}
        both = [answer for answer in known if answer.example.id in other]
        p = mcnemar([answer.correct for answer in both], [other[answer.example.id] for answer in both]).p
    mix = Counter(answer.outcome for answer in answers)
    return Row(method, candidate, len(known), correct, correct / max(len(known), 1), low, high, p, dict(mix))


def markdown(result: Result, title: str) -> str:
    """The table for `table.md` and `benchmarks/RESULTS.md`."""
    lines = [
        f"### {title}",
        "",
        "| method | EX | 95 % interval | right / n | p vs control |",
        "|---|---|---|---|---|",
    ]
    for row in result.rows:
        p = "–" if row.p_control is None else f"{row.p_control:.3g}"
        interval = f"{row.low:.3f} – {row.high:.3f}"
        lines.append(f"| {row.method} | {row.accuracy:.3f} | {interval} | {row.correct} / {row.n} | {p} |")
    lines += ["", *(f"{note}\n" for note in result.sentences), f"Served: {result.served}"]
    return "\n".join(lines) + "\n"


def rich_table(result: Result, title: str) -> RichTable:
    """The same table for a terminal."""
    table = RichTable(title=title, title_justify="left")
    for column in ("method", "EX", "95 % interval", "right / n", "p vs control"):
        table.add_column(column)
    for row in result.rows:
        p = "–" if row.p_control is None else f"{row.p_control:.3g}"
        interval = f"{row.low:.3f} – {row.high:.3f}"
        mark = " (served)" if row.candidate == result.served else ""
        table.add_row(row.method + mark, f"{row.accuracy:.3f}", interval, f"{row.correct} / {row.n}", p)
    return table

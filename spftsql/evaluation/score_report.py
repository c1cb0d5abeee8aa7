"""What a scoring found, for a person: the same sections for the terminal, Markdown and the HTML page."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spftsql.evaluation.metrics import wilson
from spftsql.evaluation.score_result import NO_DATABASE, PROPORTIONS, ScoredItem, ScoreResult, mean_of

if TYPE_CHECKING:
    from rich.console import Console

NAMES = {
    "ex": "execution accuracy",
    "ts": "test-suite accuracy",
    "exact-match": "exact match",
    "soft-f1": "soft-F1",
    "ves": "VES",
    "r-ves": "R-VES",
}
_SHOWN_REASONS = 20
_SHOWN_INDICES = 5
_REASON_WIDTH = 80
_COUNTED = re.compile(r"\d+ (columns|rows), gold \d+")
_MARKDOWN = re.compile(r"([\\|`*_\[\]])")


@dataclass(frozen=True)
class Section:
    """A title, lines of text, and a table."""

    title: str
    lines: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def sections(result: ScoreResult) -> list[Section]:
    """All that is said about a complete result, the most important first."""
    found = [Section("", tuple(_headline(result)))]
    if result.against is not None:
        found.append(_against(result))
    if len(result.metrics) > 1:
        found.append(_metrics(result))
    found += [_by_hardness(result), _by_database(result), _verdicts(result.items), _reasons(result.items)]
    if result.components is not None:
        rows = tuple((n, f"{s.accuracy:.3f}", f"{s.recall:.3f}", f"{s.f1:.3f}") for n, s in result.components.items())
        found.append(Section("exact match by component", (), ("component", "accuracy", "recall", "F1"), rows))
    return [section for section in found if section.lines or section.rows]


def markdown(result: ScoreResult) -> str:
    """The sections as Markdown."""
    return sections_as_markdown(f"{result.benchmark} {result.split}: {result.predictions}", sections(result))


def sections_as_markdown(title: str, found: Sequence[Section]) -> str:
    """A title and sections as Markdown."""
    parts = [f"# {_escaped(title)}"]
    for section in found:
        parts += [f"## {_escaped(section.title)}"] if section.title else []
        parts += [f"- {_escaped(line)}" for line in section.lines]
        if section.rows:
            lines = [section.header, ("---",) * len(section.header), *section.rows]
            escaped = [lines[0], lines[1], *([_escaped(cell) for cell in row] for row in lines[2:])]
            parts.append("\n".join(f"| {' | '.join(row)} |" for row in escaped))
    return _joined(parts) + "\n"


def show(result: ScoreResult, console: Console) -> None:
    """Prints the sections on a terminal."""
    show_sections(sections(result), console)


def show_sections(found: Sequence[Section], console: Console) -> None:
    """Prints sections on a terminal."""
    from rich.table import Table
    from rich.text import Text

    for section in found:
        if section.title and not section.rows:
            console.print(Text(printable(section.title), style="bold"), soft_wrap=True)
        for line in section.lines:
            console.print(Text(printable(line)), soft_wrap=True)
        if section.rows:
            table = Table(
                title=Text(printable(section.title), style="bold"), title_justify="left", box=None, pad_edge=False
            )
            for place, name in enumerate(section.header):
                table.add_column(
                    name, overflow="fold", justify="right" if section.rows[0][place][:1].isdigit() else "left"
                )
            for row in section.rows:
                table.add_row(*(Text(printable(cell)) for cell in row))
            console.print()
            console.print(table)


def printable(text: str) -> str:
    """The text without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _headline(result: ScoreResult) -> Iterable[str]:
    n, right = len(result.items), sum(result.correct)
    yield f"{NAMES[result.measure]} {_share(right, n)}"
    rest = [item for item in result.items if item.verdict != "unverifiable"]
    if len(rest) < n:
        absent = sorted({item.db_id for item in result.items if item.reason == NO_DATABASE})
        of_which = f" (no database file for {_count(result, absent)}: {_listed(absent)})" if absent else ""
        yield (
            f"{_questions(n - len(rest))} cannot be verified{of_which} and count as wrong; "
            f"over the {len(rest)} others {_share(right, len(rest))}"
        )
    failing = [item for item in result.items if item.gold]
    where = f"; no prediction can be right on {_questions(len(failing))} ({_indices(failing)})" if failing else ""
    yield f"gold against gold {result.ceiling:.4f}, the highest that can be had here{where}"
    limits = ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in result.limits.items())
    yield f"{result.benchmark}, split {result.split}; policy {result.policy}; predictions paired {result.pairing}"
    yield f"limits: {limits}; " + "; ".join(f"{name} {version}" for name, version in result.versions.items())
    if result.suite is not None:
        suite = result.suite
        yield (
            f"test suites of up to {suite.k} instances per gold, {suite.instances} in all; of {suite.mutants} mutants "
            f"of the golds {suite.killed_original} are told apart by the databases alone, {suite.killed_suite} with "
            f"the suites; {suite.alone} of {suite.golds} golds have no instance but the database itself"
        )
    if {"ves", "r-ves"} & set(result.metrics):
        yield "VES and R-VES are made of times: they depend on this machine and on what else it does"
    if result.rounds:
        yield "R-VES of each round, of which the best is reported: " + ", ".join(f"{x:.2f}" for x in result.rounds)
    if result.components is not None:
        yield (
            "exact match reads more SQL than Spider's own evaluator (INNER JOIN, <>, named columns, …), which takes "
            "such predictions for wrong; on what both read they agree"
        )
    yield from result.notes


def _against(result: ScoreResult) -> Section:
    found = result.against
    assert found is not None
    n, there = len(result.items), sum(found.correct)
    low, high = found.interval
    lines = (
        f"there {_share(there, n)}, paired {found.pairing}",
        f"right only here {found.only_here}, only there {found.only_there}; exact McNemar p = {found.p:.4g}",
        f"difference {found.difference:+.4f} (95 % interval {low:+.4f} to {high:+.4f})",
    )
    return Section(f"against {found.predictions}", lines)


def _metrics(result: ScoreResult) -> Section:
    rows = []
    for name in result.metrics:
        found = mean_of(result.items, name)
        low, high = found.get("interval", (None, None))
        interval = "" if low is None else f"{low:.3f} to {high:.3f}"
        rows.append(
            (NAMES[name], metric_number(name, found["value"]), str(found.get("right", "")), str(found["n"]), interval)
        )
    return Section("metrics", (), ("metric", "value", "right", "n", "95 % interval"), tuple(rows))


def _by_hardness(result: ScoreResult) -> Section:
    groups = [(level, result.of_level(level)) for level in result.levels]
    return _by(result, "hardness", groups)


def _by_database(result: ScoreResult) -> Section:
    groups = result.of_databases()
    return _by(result, "database", list(groups.items())) if len(groups) > 1 else Section("")


def _by(result: ScoreResult, what: str, groups: Sequence[tuple[str, Sequence[ScoredItem]]]) -> Section:
    others = [name for name in result.metrics if name != result.measure]
    rows = []
    for name, items in groups:
        right = sum(item.verdict == "equal" for item in items)
        low, high = wilson(right, len(items))
        more = [metric_number(other, mean_of(items, other)["value"]) for other in others]
        rows.append((name, f"{right / len(items):.3f}", str(right), str(len(items)), f"{low:.3f} to {high:.3f}", *more))
    header = (what, "accuracy", "right", "n", "95 % interval", *(NAMES[name] for name in others))
    return Section(f"by {what}", (), header, tuple(rows))


def _verdicts(items: Sequence[ScoredItem]) -> Section:
    counts: dict[str, int] = {}
    for item in items:
        counts[item.verdict] = counts.get(item.verdict, 0) + 1
    rows = tuple((name, str(count)) for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
    return Section("verdicts", (), ("verdict", "questions"), rows)


def _reasons(items: Sequence[ScoredItem]) -> Section:
    groups: dict[tuple[str, str], list[ScoredItem]] = {}
    for item in items:
        if item.verdict != "equal":
            groups.setdefault((item.verdict, kind_of(item.reason)), []).append(item)
    ordered = sorted(groups.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    rows = [(verdict, kind, str(len(group)), _indices(group)) for (verdict, kind), group in ordered[:_SHOWN_REASONS]]
    left = ordered[_SHOWN_REASONS:]
    if left:
        rows.append(("", f"{len(left)} further reasons", str(sum(len(group) for _, group in left)), ""))
    return Section("reasons", (), ("verdict", "reason", "questions", "which"), tuple(rows))


def kind_of(reason: str) -> str:
    """A reason without the names that differ from item to item, to count alike ones together."""
    if "syntax error" in reason:
        return "syntax error"
    if counted := _COUNTED.search(reason):
        return f"other number of {counted[1]}"
    parts = reason.split(":")
    kept = parts[:2] if parts[0].startswith(("gold", "instance", "refused")) else parts[:1]
    kept = [part for part in kept if not part.startswith("instance")] or kept
    return printable(":".join(kept).strip())[:_REASON_WIDTH]


def _share(right: int, n: int) -> str:
    low, high = wilson(right, n)
    return f"{right / n if n else 0:.4f} ({right} of {n}, 95 % interval {low:.4f} to {high:.4f})"


def _questions(count: int) -> str:
    return f"{count} question" + ("" if count == 1 else "s")


def _plain(limit: float) -> str:
    return str(int(limit)) if limit == int(limit) else f"{limit:g}"


def metric_number(name: str, value: float) -> str:
    """A value of a metric as it is shown."""
    return f"{value:.3f}" if name in PROPORTIONS or name == "soft-f1" else f"{value:.2f}"


def _count(result: ScoreResult, databases: Sequence[str]) -> int:
    return sum(item.db_id in databases for item in result.items)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN_INDICES]) + (", …" if len(names) > _SHOWN_INDICES else "")


def _indices(items: Sequence[ScoredItem]) -> str:
    return _listed([str(item.index) for item in items])


def _escaped(text: str) -> str:
    plain = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", plain)


def _joined(parts: Sequence[str]) -> str:
    """Blank lines between blocks, none between the lines of a list."""
    text = parts[0]
    for before, part in itertools.pairwise(parts):
        text += ("\n" if before.startswith("- ") and part.startswith("- ") else "\n\n") + part
    return text

"""What an evaluation found, for a person: greedy and voted answers side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from spftsql.evaluation.evaluating import Evaluation
from spftsql.evaluation.metrics import wilson
from spftsql.evaluation.score_report import NAMES, Section, metric_number, sections
from spftsql.evaluation.score_result import ScoredItem, ScoreResult, mean_of

_NOT_TWICE = ("metrics", "by hardness", "by database", "verdicts")  # shown side by side instead


def evaluation_title(found: Evaluation) -> str:
    """What was evaluated, in a line."""
    return f"{found.model} on {found.edition} ({found.greedy.split})"


def evaluation_sections(found: Evaluation) -> list[Section]:
    """All that is said about an evaluation, the most important first."""
    if found.voted is None:
        headline, *rest = sections(found.greedy)
        return [replace(headline, lines=(evaluation_title(found), *headline.lines, *_how(found))), *rest]
    results = (found.greedy, found.voted)
    against = found.voted.against
    assert against is not None  # voted answers are always held against the greedy ones
    low, high = against.interval
    difference = (
        f"voted minus greedy {against.difference:+.4f} (95 % interval {low:+.4f} to {high:+.4f}): right only when "
        f"voted {against.only_here}, only when greedy {against.only_there}; exact McNemar p = {against.p:.4g}"
    )
    headline, names = sections(found.greedy)[0], list(found.greedy.of_databases())
    side_by_side = [
        Section("", (evaluation_title(found), *_how(found), difference)),
        _metrics(results),
        _groups("by hardness", "hardness", results, found.greedy.levels, lambda item: item.hardness),
        *([_groups("by database", "database", results, names, lambda item: item.db_id)] if len(names) > 1 else []),
        _verdicts(results),
    ]
    each = []
    for name, result in (("greedy", found.greedy), ("voted", found.voted)):
        for section in sections(replace(result, against=None))[1:]:
            if section.title not in _NOT_TWICE:
                each.append(replace(section, title=f"{name}: {section.title}"))
    scored = replace(headline, title="greedy answers")
    return [section for section in (*side_by_side, scored, *each) if section.lines or section.rows]


def _how(found: Evaluation) -> Iterable[str]:
    effort = found.effort
    voted = f"; {found.n} samples at temperature {found.temperature:g} for the vote" if found.n > 1 else ""
    yield f"greedy answers{voted}; seed {found.seed}; prompts {found.prompts}"
    read = f", {effort.prompt_tokens} tokens of prompts" if effort.prompt_tokens is not None else ""
    kept = f", {effort.kept} kept from before" if effort.kept else ""
    yield f"{effort.requests} requests in {effort.seconds:.1f} s{kept}; {effort.tokens} tokens written{read}"
    yield from found.notes


def _metrics(results: Sequence[ScoreResult]) -> Section:
    rows = []
    for name in results[0].metrics:
        row = [NAMES[name]]
        for result in results:
            found = mean_of(result.items, name)
            low, high = found.get("interval", (None, None))
            row += [metric_number(name, found["value"]), "" if low is None else f"{low:.3f} to {high:.3f}"]
        rows.append((*row, str(len(results[0].items))))
    header = ("metric", "greedy", "95 % interval", "voted", "95 % interval", "n")
    return Section("greedy and voted", (), header, tuple(rows))


def _groups(
    title: str, what: str, results: Sequence[ScoreResult], names: Sequence[str], of: Callable[[ScoredItem], str]
) -> Section:
    others = [name for name in results[0].metrics if name != results[0].measure]
    rows = []
    for name in names:
        row = [name]
        for result in results:
            items = [item for item in result.items if of(item) == name]
            right = sum(item.verdict == "equal" for item in items)
            low, high = wilson(right, len(items))
            row += [f"{right / len(items):.3f}", f"{low:.3f} to {high:.3f}"]
            row += [metric_number(other, mean_of(items, other)["value"]) for other in others]
        rows.append((*row, str(len(items))))
    more = tuple(NAMES[other] for other in others)
    return Section(
        title, (), (what, "greedy", "95 % interval", *more, "voted", "95 % interval", *more, "n"), tuple(rows)
    )


def _verdicts(results: Sequence[ScoreResult]) -> Section:
    names = sorted({item.verdict for result in results for item in result.items})
    rows = tuple((name, *(str(sum(i.verdict == name for i in result.items)) for result in results)) for name in names)
    return Section("verdicts", (), ("verdict", "greedy", "voted"), rows)

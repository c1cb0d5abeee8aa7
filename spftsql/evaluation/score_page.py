"""One self-contained HTML page about one scoring, or about several of the same questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spftsql.evaluation.passes import SAMPLE_ROWS
from spftsql.evaluation.score_report import Section, sections
from spftsql.evaluation.score_result import Sample, ScoreResult
from spftsql.pages import render

_MOST_CELLS = 12


def page(result: ScoreResult) -> str:
    """The page: what the terminal says, and a table of all questions that can be filtered. Works without a network."""
    title = f"{result.benchmark} {result.split}: {result.predictions}"
    return results_page(title, sections(result), {"prediction": result})


def results_page(title: str, shown: Sequence[Section], results: Mapping[str, ScoreResult]) -> str:
    """The same for results by name, all of the same questions: their answers stand side by side."""
    first = next(iter(results.values()))
    keys = ["verdict"] if len(results) == 1 else list(results)
    samples = [result.samples or (Sample("", "", "", ""),) * len(result.items) for result in results.values()]
    answers = [list(zip(result.items, samples[i], strict=True)) for i, result in enumerate(results.values())]
    verdicts = [sorted({item.verdict for item in result.items}) for result in results.values()]
    return render(
        "score.html",
        title=title,
        sections=shown,
        columns=list(results),
        choices=[
            *zip(keys, verdicts, strict=True),
            ("hardness", first.levels),
            ("database", sorted({item.db_id for item in first.items})),
        ],
        items=[
            (item, samples[0][place], [(key, *answers[i][place]) for i, key in enumerate(keys)])
            for place, item in enumerate(first.items)
        ],
        most_rows=SAMPLE_ROWS,
        most_cells=_MOST_CELLS,
    )

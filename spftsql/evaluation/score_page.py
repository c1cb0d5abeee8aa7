"""One self-contained HTML page about a scoring.

Predictions are hostile text: everything is escaped, and a script in them would not run either, because the page's
policy names the one that may.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from jinja2 import Environment, StrictUndefined

from spftsql.evaluation.passes import SAMPLE_ROWS
from spftsql.evaluation.score_report import sections
from spftsql.evaluation.score_result import Sample, ScoreResult
from spftsql.sandbox.result import Cell

_LONGEST_CELL = 120
_MOST_CELLS = 12


def page(result: ScoreResult) -> str:
    """The page: what the terminal says, and a table of all questions that can be filtered. Works without a network."""
    folder = resources.files("spftsql.evaluation") / "page"
    template, style, script = (
        (folder / name).read_text(encoding="utf-8") for name in ("score.html", "score.css", "score.js")
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["cell"] = _cell
    samples = result.samples or (Sample("", "", "", ""),) * len(result.items)
    return environment.from_string(template).render(
        title=f"{result.benchmark} {result.split}: {result.predictions}",
        sections=sections(result),
        filters=[
            ("verdict", sorted({item.verdict for item in result.items})),
            ("hardness", result.levels),
            ("database", sorted({item.db_id for item in result.items})),
        ],
        items=list(zip(result.items, samples, strict=True)),
        most_rows=SAMPLE_ROWS,
        most_cells=_MOST_CELLS,
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
    )


def _cell(cell: Cell) -> str:
    if cell is None:
        return "NULL"
    text = f"x'{cell[:_LONGEST_CELL].hex()}'" if isinstance(cell, bytes) else str(cell)
    return text if len(text) <= _LONGEST_CELL else f"{text[:_LONGEST_CELL]}…"


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

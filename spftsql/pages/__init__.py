"""Self-contained HTML pages: one style, one script, one way to render them. No network, works from a file.

What is shown is hostile text (model output, values of databases): templates escape everything, and a script in it would
not run either, because the page's policy names the one that may.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from spftsql.sandbox.result import Cell

_LONGEST_CELL = 120


def render(template: str, **context: object) -> str:
    """A template of this folder as a page; templates extend `base.html`."""
    environment = _environment()
    style, script = (environment.loader.get_source(environment, name)[0] for name in ("page.css", "page.js"))  # type: ignore[union-attr]
    return environment.get_template(template).render(
        style=style, style_hash=_hash(style), script=script, script_hash=_hash(script), **context
    )


def cell_text(cell: Cell) -> str:
    """A value of a database as it is shown: NULL by name, bytes in SQL's form, and not too long."""
    if cell is None:
        return "NULL"
    text = f"x'{cell[:_LONGEST_CELL].hex()}'" if isinstance(cell, bytes) else str(cell)
    return text if len(text) <= _LONGEST_CELL else f"{text[:_LONGEST_CELL]}…"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("spftsql", "pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["cell"] = cell_text
    return environment


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

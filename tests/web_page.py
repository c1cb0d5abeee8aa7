"""The web page for the tests: served over real HTTP, with a sandbox and a database; the model knows its answers."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spftsql.demo.database import build_database
from tests.serving import ScriptedBackend, api_of, running, service_of, tokenizer_folder

CATEGORIES = (
    "SELECT c.name AS category, ROUND(SUM(l.quantity * l.price)) AS revenue FROM order_line AS l "
    "JOIN product AS p ON p.product_id = l.product_id JOIN category AS c ON c.category_id = p.category_id "
    "GROUP BY c.name ORDER BY revenue DESC LIMIT 8"
)
MONTHS = "SELECT strftime('%Y-%m', ordered) AS month, COUNT(*) AS orders FROM purchase GROUP BY month ORDER BY month"
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
# A cell that a spreadsheet would run, markup, a quote and a comma, nothing, the empty text, a negative number.
CELLS = ['=HYPERLINK("http://x")', HOSTILE, 'a "b", c', None, "", "-1", "+1", "@x"]
ANSWERS: dict[str, Sequence[str]] = {
    "revenue": [
        CATEGORIES,
        CATEGORIES.replace("ROUND(", "round("),
        CATEGORIES.replace(" LIMIT 8", ""),
        CATEGORIES,
        CATEGORIES.replace("SUM(l.quantity * l.price)", "SUM(l.price)"),
    ],
    "each month": [MONTHS],
    "hostile": [f"SELECT id, cell, {len(CELLS)} - id AS n FROM strange /* {HOSTILE} */"],
    "drop": ["DROP TABLE customer"],
    "mend": ["SELECT nam FROM customer"],
    "split": ["SELECT 1 AS one", "SELECT 2 AS two", "SELECT 3 AS three", "SELECT 4 AS four"],
    "slow": ["SELECT name, city FROM customer WHERE tier = 'gold' ORDER BY name LIMIT 3 " + "-- and on " * 200],
    "everybody": ["SELECT customer_id, name FROM customer"],
}


def answers(prompt: str) -> Sequence[str]:
    """What the model writes for a prompt: decided by a word of the question."""
    asked = prompt.rpartition("Question:")[2]
    if "no such column: nam" in prompt:
        return ["SELECT name FROM customer LIMIT 2"]
    return next(
        (texts for word, texts in ANSWERS.items() if word in asked), ["SELECT count(*) AS customers FROM customer"]
    )


@dataclass
class Page:
    """What the tests talk to."""

    url: str
    backend: ScriptedBackend
    feedback: Path
    folder: Path


def shop(path: Path) -> Path:
    """The demo's database, with a table of cells that must be shown as they are."""
    build_database(path)
    with sqlite3.connect(path) as connection:
        connection.execute('CREATE TABLE strange (id INTEGER PRIMARY KEY, cell TEXT, "<b>n</b>" INTEGER)')
        connection.executemany("INSERT INTO strange VALUES (?, ?, 1)", list(enumerate(CELLS)))
    return path


@contextlib.contextmanager
def served_page(
    folder: Path, settings: Mapping[str, Any] | None = None, keys: Path | None = None, pause: float = 0.0, port: int = 0
) -> Iterator[Page]:
    """The page over the demo's database; `pause` between the words that the model writes, in seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    feedback = folder / "feedback"
    database = folder / "shop.sqlite"
    if not database.exists():
        shop(database)
    model = folder / "model"
    if not model.exists():
        tokenizer_folder(model)
    service, backend = service_of(
        model, {"shop": str(database)}, answers, {"serve.feedback": feedback, **(settings or {})}
    )
    backend.pause = pause
    try:
        with running(api_of(service, keys), port) as url:
            yield Page(url, backend, feedback, folder)
    finally:
        backend.verifier.close()

"""The web page for the tests: served over real HTTP, with a sandbox and a database; and somebody who uses it.

Only the model is none: it knows its answers by heart.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spftsql.demo.database import build_database
from tests.serving import ScriptedBackend, api_of, running, service_of, tokenizer_folder

SECONDS = 20.0  # that a reader waits for something
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
    "hostile": [f"SELECT id, cell, {len(CELLS)} - id AS n, 9007199254740993 AS big FROM review /* {HOSTILE} */"],
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
        connection.execute('CREATE TABLE review (id INTEGER PRIMARY KEY, cell TEXT, "<b>n</b>" INTEGER)')
        connection.executemany("INSERT INTO review VALUES (?, ?, 1)", list(enumerate(CELLS)))
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
        model, {"shop": str(database)}, answers, {"serve.feedback": feedback, **(settings or {})}, "shop-model"
    )
    backend.pause = pause
    try:
        with running(api_of(service, keys), port) as url:
            yield Page(url, backend, feedback, folder)
    finally:
        backend.verifier.close()


class Reader:
    """Somebody before the page."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser = browser
        browser.get(url)
        browser.execute_script("localStorage.clear(); sessionStorage.clear()")
        browser.get(url)

    def all(self, selector: str) -> list[Any]:
        from selenium.webdriver.common.by import By

        return list(self.browser.find_elements(By.CSS_SELECTOR, selector))

    def one(self, selector: str) -> Any:
        self.until(lambda: self.all(selector), selector)
        return self.all(selector)[0]

    def text(self, selector: str) -> str:
        """What can be read there, also where it is scrolled out of sight."""
        texts = self.browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector
        )
        return "\n".join(texts)

    def until(self, ready: Callable[[], Any], what: str = "") -> None:
        end = time.monotonic() + SECONDS
        while not ready():
            assert time.monotonic() < end, f"did not come: {what}\n{self.text('main')}\n{self.log()}"
            time.sleep(0.02)

    def sees(self, text: str, selector: str = "main") -> None:
        self.until(lambda: text in self.text(selector), text)

    def keys(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def chord(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        chain = ActionChains(self.browser)
        for key in keys[:-1]:
            chain.key_down(key)
        chain.send_keys(keys[-1])
        for key in keys[:-1]:
            chain.key_up(key)
        chain.perform()

    def press(self, title: str, selector: str = "button") -> None:
        """Presses the button that is called so."""
        self.until(lambda: self._called(title, selector), title)
        self._called(title, selector)[0].click()

    def _called(self, title: str, selector: str) -> list[Any]:
        shown = [button for button in self.all(selector) if button.is_displayed()]
        return [button for button in shown if button.text.split("\n")[0] == title]

    def ask(self, question: str, n: int = 1) -> None:
        """Asks, and waits for the answer."""
        self.until(lambda: self.one("#send").is_enabled() and self.one("#send").is_displayed(), "ready")
        self.one(f"[name=n][value='{n}']").click()
        self.one("#question").click()
        self.chord(self.control, "a")
        self.keys(question, self.enter)
        self.until(lambda: self.all(".verdict, .problem") and not self.all("[aria-busy]"), question)

    def rows(self) -> list[list[str]]:
        return self.browser.execute_script(
            "return [...document.querySelectorAll('.rows tbody tr')].map((r) => [...r.cells].map((c) => c.textContent))"
        )

    def log(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def is_wider_than(self, width: int) -> bool:
        return bool(self.browser.execute_script("return document.documentElement.scrollWidth") > width)

    @property
    def enter(self) -> str:
        return "\ue007"

    @property
    def escape(self) -> str:
        return "\ue00c"

    @property
    def control(self) -> str:
        return "\ue009"

    @property
    def focus(self) -> str:
        return str(self.browser.execute_script("return document.activeElement.id"))

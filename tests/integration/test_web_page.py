"""The web page of the endpoint in a real browser, over real HTTP, with a real sandbox and a real database."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spftsql.serving.feedback import labelled_examples, read_feedback
from spftsql.serving.keys import create_key
from tests.browser import axe, chromium, look, picture
from tests.web_page import CATEGORIES, CELLS, HOSTILE, MONTHS, Page, Reader, served_page

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def page(folder: Path) -> Iterator[Page]:
    with served_page(folder) as page:
        yield page


@pytest.fixture(scope="module")
def browser(folder: Path) -> Iterator[Any]:
    (folder / "downloads").mkdir()
    with chromium(folder / "downloads") as driver:
        yield driver


@pytest.fixture
def reader(browser: Any, page: Page) -> Reader:
    look(browser)
    page.backend.pause = 0.0
    reader = Reader(browser, page.url)
    reader.until(lambda: reader.one("#send").is_enabled(), "the page")
    reader.log()
    return reader


def test_a_question_is_answered_with_sql_and_rows_by_keys_alone(reader: Reader) -> None:
    reader.keys("/")
    assert reader.focus == "question"
    reader.keys("Which categories bring in the most revenue?", reader.enter)
    reader.sees("Executed")
    assert " ".join(reader.text("pre.sql").split()) == CATEGORIES
    assert len(reader.rows()) == 8 and reader.text(".rows th") == "category\nrevenue"
    assert len(reader.all(".chart svg rect")) == 8 and "camping" in reader.one(".chart svg").get_attribute("aria-label")
    assert "11 tables" in reader.text("#schema-count") and "order_line" in reader.text("#schema")
    assert axe(reader.browser) == []
    assert reader.log() == []


@pytest.mark.long
def test_the_sql_is_seen_while_it_is_written_and_can_be_stopped(reader: Reader, page: Page) -> None:
    page.backend.pause = 0.05
    reader.keys("/", "a slow one", reader.enter)
    reader.sees("SELECT name", "pre.sql")
    before = reader.text("pre.sql")
    assert reader.text("#status") == "Writing SQL" and not reader.all(".verdict")
    reader.until(lambda: len(reader.text("pre.sql")) > len(before), "more of the SQL")
    assert page.backend.open_streams == 1
    reader.keys(reader.escape)
    reader.sees("Stopped.")
    reader.until(lambda: page.backend.open_streams == 0, "the end of the stream")
    assert reader.one("#question").get_attribute("value") == "a slow one" and reader.one("#send").is_displayed()
    assert reader.log() == []


@pytest.mark.long
def test_a_statement_can_be_edited_and_run_but_not_write(reader: Reader) -> None:
    reader.ask("how many customers?")
    assert reader.rows() == [["900"]]
    reader.press("Edit")
    reader.chord(reader.control, "a")
    reader.keys("SELECT city, count(*) AS n FROM customer GROUP BY city ORDER BY n DESC LIMIT 3")
    reader.chord(reader.control, reader.enter)
    reader.until(lambda: len(reader.rows()) == 3, "three cities")
    reader.press("Edit")
    reader.chord(reader.control, "a")
    reader.keys("DELETE FROM customer")
    reader.press("Run")
    reader.sees("Refused")
    assert "DELETE" in reader.text(".verdict") and not reader.rows()
    reader.press("Edit")
    reader.chord(reader.control, "a")
    reader.keys("SELECT nothing FROM customer", reader.escape)
    assert reader.text("pre.sql") == "DELETE FROM customer" and not reader.all("textarea.sql")
    reader.ask("please drop it")
    assert "Refused" in reader.text(".verdict")
    reader.ask("how many customers?")
    assert reader.rows() == [["900"]]


@pytest.mark.long
def test_text_of_the_model_and_of_the_database_is_never_markup(reader: Reader) -> None:
    reader.ask(f"show the hostile ones {HOSTILE}")
    assert reader.text(".asked").endswith(HOSTILE) and HOSTILE in reader.text("pre.sql")
    cells = [row[1] for row in reader.rows()]
    assert cells == [{None: "NULL", "": "empty"}.get(cell, cell) for cell in CELLS]
    assert {row[3] for row in reader.rows()} == {"9007199254740993"}  # all digits of what no float has
    assert HOSTILE in reader.text(".chart") and HOSTILE in reader.text("#history")
    assert "<b>n</b>" in reader.text("#schema")
    reader.press("Query plan", "[role=tab]")
    reader.sees("SCAN review")
    reader.browser.refresh()
    reader.sees(HOSTILE, "#history")
    assert reader.browser.title == "spftsql"
    assert reader.browser.execute_script("return document.querySelectorAll('img[src=x], main script, b').length") == 0
    assert reader.log() == []
    # Even a slip of the page's own code could not turn text into markup.
    slip = "try { document.body.innerHTML = '<b>x</b>'; return 'markup' } catch { return 'refused' }"
    assert reader.browser.execute_script(slip) == "refused"


@pytest.mark.long
def test_candidates_show_their_votes_and_a_split_vote_shows_no_rows(reader: Reader) -> None:
    reader.ask("Which categories bring in the most revenue?", n=8)
    reader.press("Candidates (8)", "[role=tab]")
    assert reader.text(".votes meter + span") == "5 of 8\n2 of 8\n1 of 8"
    reader.press("Run this one", ".candidates li:nth-child(2) button")
    reader.until(lambda: "LIMIT" not in reader.text("pre.sql") and reader.rows(), "the second candidate's rows")
    assert len(reader.rows()) == 16
    reader.press("Add a hint")
    reader.one("#agreement option[value='0.5']").click()
    reader.ask("a split one", n=4)
    assert "Unsure" in reader.text(".verdict") and "1 of 4" in reader.text(".verdict") and not reader.rows()
    assert len(reader.all(".candidates > li")) == 4


@pytest.mark.long
def test_the_query_plan_and_a_repair_are_shown(reader: Reader) -> None:
    reader.ask("please mend it")
    assert "Repaired once: no such column: nam" in reader.text(".verdict")
    reader.ask("Which categories bring in the most revenue?")
    reader.press("Query plan", "[role=tab]")
    reader.sees("SEARCH p USING INTEGER PRIMARY KEY", ".plan")
    reader.keys("\ue012")  # arrow to the left
    assert reader.browser.execute_script("return document.activeElement.textContent") == "Result"


@pytest.mark.long
def test_charts_are_drawn_where_a_result_has_one(reader: Reader) -> None:
    reader.ask("How did orders go each month?")
    assert " ".join(reader.text("pre.sql").split()) == MONTHS
    label = reader.one(".chart svg").get_attribute("aria-label")
    assert label.startswith("Line chart of orders by month, 36 values") and len(reader.all(".chart circle")) == 36
    outside = """
    const svg = document.querySelector(".chart svg"), outer = svg.getBoundingClientRect();
    return [...svg.querySelectorAll("text, rect, circle")].filter((mark) => {
      const inner = mark.getBoundingClientRect();
      return inner.left < outer.left - 2 || inner.right > outer.right + 2 || inner.bottom > outer.bottom + 2;
    }).map((mark) => mark.outerHTML);
    """
    assert reader.browser.execute_script(outside) == []
    reader.ask("Which categories bring in the most revenue?")
    assert reader.one(".chart svg").get_attribute("aria-label").startswith("Bar chart of revenue by category, 8 values")
    assert reader.browser.execute_script(outside) == []
    reader.ask("how many customers?")
    assert not reader.all(".chart")


@pytest.mark.long
def test_long_results_are_cut_and_more_can_be_had(reader: Reader) -> None:
    reader.ask("show me everybody")
    assert len(reader.rows()) == 100 and "there are more" in reader.text(".rows-foot")
    reader.press("Up to 1,000")
    reader.until(lambda: len(reader.rows()) == 900, "all rows")
    assert "900 rows" in reader.text(".rows-foot")


@pytest.mark.long
def test_the_csv_holds_the_rows_and_no_formula(reader: Reader, folder: Path) -> None:
    file = folder / "downloads" / "shop.csv"
    reader.ask("show the hostile ones")
    reader.press("CSV")
    reader.until(file.exists, "the download")
    with file.open(encoding="utf-8-sig", newline="") as opened:
        head, *rows = csv.reader(opened)
    assert head == ["id", "cell", "n", "big"] and {row[3] for row in rows} == {"9007199254740993"}
    assert [row[0] for row in rows] == [str(number) for number in range(len(CELLS))]
    for cell, (_, text, *_) in zip(CELLS, rows, strict=True):
        assert text == (cell or "") or (cell and cell[0] in "=+-@" and text == f"'{cell}"), text
        assert not text.startswith(("=", "+", "-", "@"))


@pytest.mark.long
def test_what_people_say_becomes_labels(reader: Reader, page: Page) -> None:
    before = len(read_feedback(page.feedback)) if page.feedback.exists() else 0
    reader.ask("how many customers?")
    reader.press("Yes")
    reader.sees("kept as a label", ".feedback")
    reader.ask("how many gold customers?")
    reader.press("No")
    reader.sees("What should it have been?", ".feedback")
    reader.press("Correct it")
    reader.chord(reader.control, "a")
    reader.keys("SELECT count(*) FROM customer WHERE tier = 'platinum", reader.escape)
    reader.press("Edit")  # to look first, and to keep it afterwards
    reader.chord(reader.control, "a")
    right = "SELECT count(*) AS n FROM customer WHERE tier = 'gold'"
    reader.keys(right)
    reader.chord(reader.control, reader.enter)
    reader.sees("Is your SQL the right answer?", ".feedback")
    reader.press("Yes, keep it as the answer")
    reader.sees("kept as the right answer", ".feedback")
    reader.ask("please drop it")
    reader.press("Correct it")
    reader.chord(reader.control, "a")
    reader.keys("SELECT nowhere FROM customer")
    reader.press("Save as the right answer")
    reader.sees("no such column: nowhere", ".feedback")
    entries = read_feedback(page.feedback)[before:]
    assert [(e.question, e.rating, e.corrected) for e in entries] == [
        ("how many customers?", "up", False),
        ("how many gold customers?", "down", False),
        ("how many gold customers?", "down", True),
    ]
    labels = {label.question: label.sql for label in labelled_examples(page.feedback, ["shop"])}
    assert labels["how many customers?"] == "SELECT count(*) AS customers FROM customer"
    assert labels["how many gold customers?"] == right and "please drop it" not in labels


@pytest.mark.long
def test_the_history_is_kept_without_rows_and_can_be_cleared(reader: Reader) -> None:
    for question in ("how many customers?", "please drop it", "How did orders go each month?"):
        reader.ask(question)
    kept = reader.browser.execute_script("return localStorage.getItem('spftsql.history')")
    assert json.loads(kept)[0]["question"] == "How did orders go each month?"
    assert "2022-01" not in kept and MONTHS in json.loads(kept)[0]["sql"]
    reader.browser.refresh()
    reader.until(lambda: reader.one("#send").is_enabled(), "the page")
    reader.one("#question").click()
    reader.keys("\ue013", "\ue013")  # up, up
    assert reader.one("#question").get_attribute("value") == "please drop it"
    reader.keys("\ue015")  # down
    assert reader.one("#question").get_attribute("value") == "How did orders go each month?"
    reader.one(".history-list button").click()
    reader.sees("Rows are not kept.")
    reader.press("Run it again")
    reader.until(lambda: len(reader.rows()) == 36, "the rows")
    reader.browser.execute_script("document.querySelector('.history-list button').focus()")
    reader.keys("\ue015", "\ue015", reader.enter)
    reader.sees("how many customers?", ".asked")
    reader.press("Clear")
    reader.press("Clear all?")
    reader.sees("What you ask is listed here", "#history")
    assert reader.browser.execute_script("return localStorage.getItem('spftsql.history')") is None


@pytest.mark.long
def test_the_first_rows_of_a_table_are_one_press_away(reader: Reader) -> None:
    reader.one("#schema-filter").send_keys("tier")
    shown = [entry for entry in reader.all(".table-entry") if entry.is_displayed()]
    assert len(shown) == 1 and "customer" in shown[0].text and "primary key" not in shown[0].text
    assert "customer_id" in shown[0].text and "key" in shown[0].text and "e.g." in shown[0].text
    reader.press("First rows")
    reader.until(lambda: len(reader.rows()) == 50, "the rows")
    assert not reader.all(".feedback button") or not reader.one(".feedback").is_displayed()


@pytest.mark.long
def test_a_key_is_asked_for_and_shows_what_it_is_granted(browser: Any, folder: Path, tmp_path: Path) -> None:
    key, _ = create_key(tmp_path / "keys.json", "analyst", ["ask"], ["shop.customer.customer_id", "shop.customer.name"])
    look(browser)
    with served_page(folder / "keyed", keys=tmp_path / "keys.json") as page:
        reader = Reader(browser, page.url)
        reader.until(lambda: reader.one("#key-dialog").is_displayed(), "the dialog")
        assert axe(browser) == []
        reader.one("#key").send_keys("wrong", reader.enter)
        reader.sees("not valid", "#key-error")
        reader.one("#key").send_keys(key, reader.enter)
        reader.sees("customer_id", "#schema")
        assert "tier" not in reader.text("#schema") and reader.text("#schema-count") == "1 table"
        assert browser.execute_script("return localStorage.getItem('spftsql.key')") is None
        reader.ask("how many customers?")
        assert reader.rows() == [["900"]]
        # This key may ask, and neither run statements of its own nor say what is right.
        assert not reader.all(".feedback button")
        assert [tab.text for tab in reader.all("[role=tab]")] == ["Result"]
        assert [button.text for button in reader.all(".actions button") if button.is_displayed()] == ["Copy"]
        browser.refresh()
        reader.until(lambda: reader.one("#send").is_enabled(), "the key again")
        reader.press("Key")
        reader.press("Forget the key")
        reader.sees("wants a key", "#banner")
        assert browser.execute_script("return sessionStorage.getItem('spftsql.key')") is None


@pytest.mark.long
def test_a_server_that_goes_away_is_waited_for(browser: Any, folder: Path) -> None:
    look(browser)
    with served_page(folder / "restarted") as page:
        reader = Reader(browser, page.url)
        reader.ask("how many customers?")
        port = int(page.url.rpartition(":")[2])
    reader.ask("show me everybody")
    reader.sees("cannot be reached", ".problem")
    reader.sees("waits for it", "#banner")
    assert reader.one("#question").get_attribute("value") == "show me everybody"
    with served_page(folder / "restarted", port=port):
        reader.until(lambda: not reader.one("#banner").is_displayed(), "the server again")
        reader.one("#question").click()
        reader.keys(reader.enter)
        reader.until(lambda: len(reader.rows()) == 100, "the rows")


@pytest.mark.long
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (360, False), (360, True)])
def test_everything_fits_and_axe_finds_nothing(reader: Reader, width: int, dark: bool) -> None:
    browser = reader.browser
    look(browser, width, dark, height=760)

    def check(what: str) -> None:
        assert axe(browser) == [], what
        assert not reader.is_wider_than(width), what

    check("welcome")
    reader.press("Add a hint")
    check("hint")
    for question in ("show the hostile ones", "please drop it", "How did orders go each month?"):
        reader.ask(question)
        check(question)
    reader.ask("Which categories bring in the most revenue?", n=8)
    for tab in ("Candidates (8)", "Query plan", "Result"):
        reader.press(tab, "[role=tab]")
        check(tab)
    reader.press("Edit")
    check("editor")
    reader.keys(reader.escape)
    browser.execute_script("document.querySelectorAll('.table-entry').forEach((entry) => (entry.open = true))")
    reader.press("Yes")
    reader.sees("Thank you", ".feedback")
    check("thanks and schema")
    reader.one("#open-help").click()
    check("help")
    reader.keys(reader.escape)
    assert reader.log() == []


@pytest.mark.long
def test_the_theme_follows_the_system_or_the_choice(reader: Reader) -> None:
    browser = reader.browser
    back = "return getComputedStyle(document.body).backgroundColor"
    light = browser.execute_script(back)
    look(browser, dark=True)
    dark = browser.execute_script(back)
    assert light != dark
    reader.one("#theme").click()
    assert browser.execute_script(back) == light
    browser.refresh()
    assert browser.execute_script(back) == light and "light" in reader.one("#theme").get_attribute("aria-label")
    look(browser, dark=False, reduced=True)
    moving = "return getComputedStyle(document.querySelector('.composer')).transitionDuration"
    assert browser.execute_script(moving) in ("0s", "")


@pytest.mark.long
def test_keys_that_are_letters_can_be_turned_off(reader: Reader) -> None:
    reader.keys("?")
    assert reader.one("#help-dialog").is_displayed()
    reader.one("#single-keys").click()
    reader.keys(reader.escape)
    reader.keys("/", "?")
    assert reader.focus != "question" and not reader.one("#help-dialog").is_displayed()


# Where the pictures of the documentation go; `make pictures` sets it.
PICTURES = os.environ.get("SPFTSQL_PICTURES")


@pytest.mark.long
def test_pictures_for_the_documentation(reader: Reader, tmp_path: Path) -> None:
    folder = Path(PICTURES) if PICTURES else tmp_path
    browser = reader.browser

    def take(name: str, top: str = "body") -> None:
        scroll = "document.activeElement.blur(); document.querySelector(arguments[0]).scrollIntoView()"
        browser.execute_script(scroll, top)
        time.sleep(0.3)  # for what fades
        (folder / f"{name}.png").write_bytes(picture(browser))
        assert 5_000 < (folder / f"{name}.png").stat().st_size < 200_000

    reader.ask("How did orders go each month?")
    look(browser, 1280, height=960)
    reader.ask("Which categories bring in the most revenue?", n=8)
    take("page-light")
    look(browser, 1280, dark=True, height=960)
    reader.ask("How did orders go each month?")
    take("page-dark")
    look(browser, 390, height=844)
    reader.ask("Which categories bring in the most revenue?", n=8)
    take("page-phone", ".verdict")

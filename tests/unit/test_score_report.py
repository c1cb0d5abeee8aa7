"""What is said about a scoring, in all forms; hostile text in predictions, reasons and results stays text."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from spftsql.evaluation.evaluate_report import evaluation_sections
from spftsql.evaluation.evaluating import Effort, Evaluation
from spftsql.evaluation.exact_match import PartialScore
from spftsql.evaluation.score_page import page
from spftsql.evaluation.score_report import kind_of, markdown, sections_as_markdown, show
from spftsql.evaluation.score_result import NO_DATABASE, Against, Sample, ScoredItem, ScoreResult, SuiteSummary

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(2)> | ` \x1b[31m \"quoted\" 'single'"


def item(index: int, verdict: str, reason: str = "", **more: str) -> ScoredItem:
    return ScoredItem(index, "towns", verdict, reason, hardness="easy", values={"ex": verdict == "equal"}, **more)


ITEMS = (
    item(0, "equal"),
    item(1, "different", "3 rows, gold 2"),
    item(2, "different", "17 rows, gold 1"),
    item(3, "error", f"no such column: {HOSTILE}"),
    item(4, "error", f"no such column: b{HOSTILE}"),
    item(5, "unverifiable", "gold error: no such table: x", gold="gold error: no such table: x"),
    replace(item(6, "unverifiable", NO_DATABASE, gold=NO_DATABASE), db_id="atlantis"),
)
RESULT = ScoreResult(
    benchmark="jsonl",
    split="test",
    policy="strict",
    measure="ex",
    predictions=f"folder/{HOSTILE}.sql",
    pairing="by id",
    versions={"spftsql": "0", "engine": "sqlite 3"},
    limits={"soft_seconds": 30.0, "max_rows": 1_000_000},
    items=ITEMS,
    notes=("a note",),
    samples=tuple(
        Sample(f"question {HOSTILE}", HOSTILE, HOSTILE, HOSTILE, ((HOSTILE, None, b"\x00<", 1.5),), ()) for _ in ITEMS
    ),
)


def shown(result: ScoreResult) -> str:
    out = io.StringIO()
    show(result, Console(file=out, width=200))
    return out.getvalue()


def test_what_is_said() -> None:
    text = shown(RESULT)
    assert "execution accuracy 0.1429 (1 of 7, 95 % interval 0.0257 to 0.5131)" in text
    assert "2 questions cannot be verified (no database file for 1: atlantis) and count as wrong" in text
    assert "over the 5 others 0.2000" in text
    assert (
        "gold against gold 0.7143, the highest that can be had here; no prediction can be right on 2 questions (5, 6)"
        in text
    )
    assert "policy strict; predictions paired by id" in text
    assert "soft seconds 30, max rows 1000000; spftsql 0; engine sqlite 3" in text
    assert "a note" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "easy 0.143 1 7 0.026 to 0.513" in lines
    assert "error 2" in lines
    assert "different other number of rows 2 1, 2" in lines
    assert "error no such column 2 3, 4" in lines
    assert "unverifiable gold error: no such table 1 5" in lines


def test_more_is_said_where_more_was_asked_for() -> None:
    values = {"ex": 1, "ts": 0, "exact-match": 1, "soft-f1": 0.5, "ves": 90.0, "r-ves": 86.6}
    result = replace(
        RESULT,
        measure="ts",
        items=tuple(replace(one, values=values) for one in ITEMS),
        metrics=tuple(values),
        components={"select": PartialScore(0.5, 0.25, 1 / 3)},
        rounds=(80.0, 86.6),
        suite=SuiteSummary(5, 9, 7, 1, 40, 30, 38),
        against=Against("other.sql", "by number", (True,) * 7, 0, 6, 0.03125, -0.857, (-0.99, -0.4)),
    )
    text = shown(result)
    for piece in (
        "test-suite accuracy 0.1429",
        "up to 5 instances per gold, 9 in all; of 40 mutants of the golds 30 are told apart by the databases alone, 38",
        "depend on this machine",
        "80.00, 86.60",
        "right only here 0, only there 6; exact McNemar p = 0.03125",
        "difference -0.8570 (95 % interval -0.9900 to -0.4000)",
        "soft-F1",
    ):
        assert piece in text
    assert "| exact match | 1.000 | 7 | 7 | 0.646 to 1.000 |" in markdown(result)
    assert "| select | 0.500 | 0.250 | 0.333 |" in markdown(result)


def test_greedy_and_voted_have_every_metric_by_hardness_and_database() -> None:
    def result(ves: float, **more: Any) -> ScoreResult:
        values = {"ex": 1, "soft-f1": ves / 200, "ves": ves, "r-ves": ves + 1}
        items = tuple(replace(one, values=values) for one in ITEMS)
        return replace(RESULT, items=items, metrics=tuple(values), **more)

    against = Against("greedy.jsonl", "by index", (True,) * 7, 0, 0, 1.0, 0.0, (-0.1, 0.1))
    found = Evaluation(
        "m", "jsonl", 0, 4, 0.8, 7, 7, "p", result(90), result(80, against=against), Effort(7, 0, 9, None, 0, 0, 1.0)
    )
    text = sections_as_markdown("t", evaluation_sections(found))
    names = "soft-F1 | VES | R-VES"
    for what, group in (("hardness", "easy"), ("database", "towns")):
        header = f"| {what} | greedy | 95 % interval | {names} | voted | 95 % interval | {names} | n |"
        assert header in text
        (row,) = [line for line in text.partition(header)[2].splitlines() if line.startswith(f"| {group} |")]
        assert "| 0.450 | 90.00 | 91.00 |" in row and "| 0.400 | 80.00 | 81.00 |" in row


def test_a_terminal_is_given_no_commands() -> None:
    assert "\x1b" not in shown(RESULT)


def test_markdown_holds_no_html_and_keeps_its_tables() -> None:
    text = markdown(RESULT)
    assert "<" not in text and "\x1b" not in text
    rows = [line for line in text.splitlines() if line.startswith("| error")]
    assert rows == ["| error | 2 |", "| error | no such column | 2 | 3, 4 |"]


class Reader(HTMLParser):
    """What a browser would make of a page: its tags, and the attributes by which it would load or run something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.risky: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.risky += [(tag, name) for name, _ in attributes if name in ("src", "href") or name.startswith("on")]


def test_hostile_text_stays_text_on_the_page() -> None:
    text = page(RESULT)
    reader = Reader(text)
    assert reader.tags.count("script") == 1
    assert reader.risky == []
    assert not set(reader.tags) & {"img", "iframe", "link", "object"}
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 4 * len(ITEMS)


def test_the_page_works_alone_and_allows_only_its_own_script() -> None:
    text = page(RESULT)
    assert not re.search(r"https?://|@import|url\(", text)
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        content = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(content) == 1
        digest = base64.b64encode(hashlib.sha256(content[0].encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in text
    assert "default-src 'none'" in text


def test_the_page_shows_questions_and_rows() -> None:
    text = page(RESULT)
    assert text.count("<tr data-verdict=") == len(ITEMS)
    assert "<td>NULL</td>" in text and "<td>x&#39;003c&#39;</td>" in text and "<td>1.5</td>" in text
    assert "no rows" in text
    assert '<tr data-verdict="unverifiable" data-hardness="easy" data-database="atlantis">' in text
    assert len(Reader(page(replace(RESULT, samples=None))).tags) > 20


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("values", "values"),
        ('near "x": syntax error', "syntax error"),
        ("3 columns, gold 2", "other number of columns"),
        ("instance 3: 5 rows, gold 2", "other number of rows"),
        ("instance 3: values", "values"),
        ("no such function: f", "no such function"),
        ("gold timeout: longer than 30 s", "gold timeout: longer than 30 s"),
        ("refused: more than one statement", "refused: more than one statement"),
        (NO_DATABASE, NO_DATABASE),
    ],
)
def test_kinds_of_reasons(reason: str, kind: str) -> None:
    assert kind_of(reason) == kind

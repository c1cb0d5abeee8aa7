"""`spftsql report`: the page about a run, finished or not; what is shown is escaped and bounded."""

from __future__ import annotations

import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from spftsql.errors import UserError
from spftsql.recipes import resolve
from spftsql.reporting.charts import Estimate, estimates_chart, lines_chart, shares_chart, thinned
from spftsql.reporting.lineage_report import made_from, model_card
from spftsql.reporting.report_page import MOST_PAIRS, report_page, run_report
from spftsql.reporting.run_record import RunRecord, read_run
from spftsql.reporting.status import render
from spftsql.reporting.stored import read_answers, read_exams, spread
from spftsql.runs import Run
from spftsql.selfplay.gate import Decision
from spftsql.selfplay.table import Result, Row
from tests.made_run import HOSTILE, make_run


class Reader(HTMLParser):
    """Tags of a page, its risky attributes, ids, and the texts of its cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.risky: list[tuple[str, str | None]] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if (
                name in ("src", "style")
                or name.startswith("on")
                or (name == "href" and not (value or "").startswith("#"))
            ):
                self.risky.append((tag, name))


def render_status(record: RunRecord) -> str:
    console = Console(width=300)
    with console.capture() as said:
        console.print(render(record))
    return said.get()


def test_a_finished_run(tmp_path: Path) -> None:
    root = make_run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    text = report_page(read_run(root))
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    reader = Reader(text)
    assert reader.tags.count("script") == 1 and reader.risky == [] and "img" not in reader.tags
    assert HOSTILE not in text and "&lt;script&gt;document.title" in text
    assert not re.search(r"https?://|@import|url\(", text)
    assert len(reader.ids) == len(set(reader.ids))
    assert set(re.findall(r'href="#(\w+)"', text)) <= set(reader.ids)
    for piece in (
        "finished; vbi-1 is served",
        "method spft-a-1",
        "Gate, spft-a-1 against vbi-1: undecided",
        "about 379 more questions would decide",
        "label 3 of labels set aside",
        "opponent right on 0.35; 40 pairs, 10 of them near misses; left out 2 timeout",
        "10 label, 4 label with a near miss, 20 synthetic, 6 synthetic with a near miss",
        "round 1: 40 of 120 drawn statements accepted",
        "dropped: 40 empty",
        "round 1: 10 recombined statements kept",
        "generate-round-1: 3 of 240 requests asked again",
        "self-play cannot be guarded",
        "dropped: 3 constant-null",
        "30 of 40 statements became pairs",
        "30 of 40 statements became pairs; dropped: 10 a value is not said",
        "writes one SELECT statement",
        "GPU-hours",
        "Synthetic questions, which decide nothing: spft-a-1 against vbi-1: undecided",
        "spft-a, iteration 2: stopped",
        "1 of 60 play golds are contradicted",
        "those of the selection and gate sets count all the same",
        "labels, then 1 round of verified synthetic pairs, then up to 1 iteration of self-play (spft-a)",
        "demo, 100% of its training labels",
        "Golds to look at",
        "SELECT 2</pre><small>2 of 3</small>",
    ):
        assert piece in text, piece
    assert "Missing" not in text and ">None" not in text and "None of" not in text
    assert text.count('role="img"') == 2 + 3  # accuracy, verdicts; loss, margin, preferred


def test_what_changed_is_shown_with_both_results(tmp_path: Path) -> None:
    root = make_run(tmp_path)
    record = read_run(root)
    answers = read_answers(record, read_exams(root))
    first, last = ({a.example.id: a.right for a in answers[name, "test"]} for name in ("sft", "spft-a-1"))
    fixed = sum(last[name] and not first[name] for name in first)
    broken = sum(first[name] and not last[name] for name in first)
    text = report_page(record)
    assert fixed and broken
    assert f"{fixed} fixed" in text and f"{broken} broken" in text
    assert text.count('<tr data-change="fixed">') == fixed and text.count('<tr data-change="broken">') == broken
    assert "<td>Town 19</td>" in text or "<td>Town 2</td>" in text  # rows of the results, fetched again
    (root / "towns.sqlite").unlink()
    assert "their databases are not here, so no results are shown" in report_page(read_run(root))


def test_hardness_and_intervals_are_those_of_the_answers(tmp_path: Path) -> None:
    root = make_run(tmp_path)
    record = read_run(root)
    answers = read_answers(record, read_exams(root))["vbi-1", "test"]
    easy = [answer.right for answer in answers if answer.example.hardness == "easy"]
    assert f"{sum(easy) / len(easy):.3f} (" in report_page(record)
    assert record.mixes["vbi-1"]["test"]["equal"] == sum(answer.right for answer in answers)


def test_an_unfinished_run_says_what_is_missing(tmp_path: Path) -> None:
    run = Run(resolve("demo", [f"run_dir={tmp_path}"]))
    run.close()
    text = report_page(read_run(run.root))
    for piece in ("the run has not come to its end", "No candidate has been measured yet", "Nothing was trained yet"):
        assert piece in text
    half = make_run(tmp_path / "half", finished=False)
    text = report_page(read_run(half))
    assert "no process holds it" in text and "There is none before the gate has decided" in text
    assert "From sft to control, on the test questions" in text


def test_what_an_unfinished_run_has_decided_is_said_in_full(tmp_path: Path) -> None:
    root = make_run(tmp_path, finished=False)
    decisions = (
        Decision("vbi-1", "sft", "better", 14, 2, 60, 0.004, None),
        Decision("spft-a-1", "vbi-1", "undecided", 5, 2, 60, 0.45, 379),
    )
    run = Run(resolve("demo", [f"run_dir={tmp_path}"]))
    for decision in decisions:
        run.event("gate", **asdict(decision), fold=None)
        run.event("gate-synthetic", **asdict(decision))
    run.close()
    text = report_page(read_run(root))
    for decision in decisions:
        assert f'<strong class="{decision.outcome}">{decision.outcome}</strong> {decision.sentence()}' in text
        assert f"Synthetic questions, which decide nothing: {decision.finding()}." in text
    assert render_status(read_run(root)).count("Gate, ") == 2


def test_a_run_without_a_gate_says_so(tmp_path: Path) -> None:
    run = Run(resolve("demo", [f"run_dir={tmp_path}"]))
    run.event("gate", outcome="no gate set; the best on the selection set is served", served="vbi-1")
    run.close()
    text = report_page(read_run(run.root))
    assert "<p>no gate set; the best on the selection set is served</p>" in text


def test_a_run_without_labels_claims_none(tmp_path: Path) -> None:
    recipe = tmp_path / "own.yaml"
    recipe.write_text(
        "{name: own, data: {benchmark: none, databases: [{name: s, url: s.sqlite}]}, model: {path: org/base}}"
    )
    run = Run(resolve(str(recipe), [f"run_dir={tmp_path}", "vbi.rounds=2", "selfplay.iterations=0"]))
    row = Row("base model", "base", 3, 1, 0.3, 0.1, 0.5, None, {})
    run.write("result.json", Result((row,), (), "base", "m", {"s": "x"}, exam="selection").to_json())
    run.event("finished", served="base")
    run.close()
    record = read_run(run.root)
    training = dict(model_card(record))["training"]
    assert training.startswith("2 rounds of verified synthetic pairs; ") and "label" not in training
    assert dict(made_from(record))["benchmark"] == "none: databases without labels"
    withheld = Run(resolve("demo", [f"run_dir={tmp_path}", "data.label_share=0"]))
    withheld.close()
    assert dict(made_from(read_run(withheld.root)))["benchmark"] == "demo, none of its training labels"


def test_the_page_is_bounded(tmp_path: Path) -> None:
    small, large = (report_page(read_run(make_run(tmp_path / str(n), 20, n))) for n in (40, 2000))
    assert large.count('<tr data-fate="') == MOST_PAIRS
    assert "1500 of 2000 statements became pairs" in large
    assert len(large) < 2_000_000
    assert small.count('<tr data-fate="') == 40


def test_where_it_is_written(tmp_path: Path) -> None:
    root = make_run(tmp_path, 8, 4)
    assert run_report(root, None) == root / "report.html"
    assert run_report(root, tmp_path / "page.html").read_text() == (root / "report.html").read_text()
    with pytest.raises(UserError, match=r"--out .*: the folder"):
        run_report(root, tmp_path / "none" / "page.html")


def test_charts_show_the_numbers_at_their_places() -> None:
    chart = estimates_chart("a", ["m"], {"test": {"m": Estimate(0.5, 0.4, 0.6)}})
    low, high = map(float, re.findall(r'd="M[\d.]+ ([\d.]+)V([\d.]+)M', chart)[0])
    centre = float(re.findall(r'cy="([\d.]+)"', chart)[0])
    assert centre == pytest.approx((low + high) / 2, abs=0.1) and low > high
    assert "test, m: 0.500 (0.400 to 0.600)" in chart
    bars = shares_chart("b", [("one", {"equal": 3, "error": 1})])
    widths = [float(x) for x in re.findall(r'width="([\d.]+)" height="20"', bars)]
    assert widths[0] == pytest.approx(3 * widths[1], abs=0.1)
    assert lines_chart("c", {"x": [(1.0, float("nan"))]}, "step") == ""
    assert "<script>" not in lines_chart("c", {HOSTILE: [(1.0, 2.0), (2.0, 1.0)]}, "step")
    curve = [(float(i), 1.0) for i in range(5000)]
    assert len(thinned(curve)) == 240 and sum(y for _, y in thinned(curve)) == 240
    assert spread(list(range(10)), 5) == [0, 2, 4, 6, 8]

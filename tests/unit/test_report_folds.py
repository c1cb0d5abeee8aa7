"""A run whose labels decide fold by fold: what is a fold's is not the run's, and the gate's n is the decision's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from spftsql.recipes import resolve
from spftsql.reporting.lineage_report import lineage_rows, model_card
from spftsql.reporting.report_page import report_page
from spftsql.reporting.run_record import RunRecord, read_run
from spftsql.reporting.status import render, status_tree
from spftsql.reporting.stored import read_answers, read_curves, read_exams, read_play
from spftsql.runs import Run
from spftsql.selfplay.candidates import Candidate, Exam
from tests.made_run import CANDIDATES, FOLD_LABELS, make_run
from tests.unit.test_report_faults import QUESTIONS, HalfAnswered

ASKED = 60 + 2 * FOLD_LABELS


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    return read_run(make_run(tmp_path, folds=2))


def test_the_status_shows_the_runs_candidates_with_the_gates_n(
    record: RunRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = status_tree(record)
    assert [one["name"] for one in tree["candidates"]] == list(CANDIDATES) and record.selection == CANDIDATES
    assert {one["name"]: one["gate"]["n"] for one in tree["candidates"]} == {
        name: 60 if name == "control" else ASKED for name in CANDIDATES
    }
    assert {one["test"]["n"] for one in tree["candidates"]} == {60}
    assert [decision["n"] for decision in tree["decisions"]] == [ASKED, ASKED]
    assert [event["why"] for event in tree["stopped"] if "fold" in event["why"]] == []
    Console(width=200).print(render(record))
    said = capsys.readouterr().out
    assert f"gate (n {ASKED})" in said and "test (n 60)" in said
    (control,) = [line for line in said.splitlines() if line.startswith("control")]
    assert control.count("n 60") == 1  # folds have none


def test_the_gates_n_is_the_decisions_also_where_a_fold_has_no_such_candidate(tmp_path: Path) -> None:
    root = make_run(tmp_path, folds=2)
    lines = (root / "events.jsonl").read_text().splitlines(keepends=True)
    left = [line for line in lines if not ('"spft-a-1"' in line and '"fold": 2' in line)]
    assert len(left) < len(lines)  # self-play of that fold kept what it began with
    (root / "events.jsonl").write_text("".join(left))
    record = read_run(root)
    console = Console(width=200)
    with console.capture() as captured:
        console.print(render(record))
    assert f"gate (n {ASKED})" in captured.get()
    (played,) = [line for line in captured.get().splitlines() if line.startswith("spft-a-1")]
    assert f"n {ASKED - FOLD_LABELS})" in played


def test_while_folds_are_played_nobody_is_a_candidate_of_the_run_yet(tmp_path: Path) -> None:
    root = make_run(tmp_path, folds=2)
    lines = (root / "events.jsonl").read_text().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if '"verdicts"' in line and "fold" not in line)
    (root / "events.jsonl").write_text("".join(lines[:first]))
    tree = status_tree(read_run(root))
    assert tree["candidates"] == [] and tree["stopped"] == []
    assert "No candidate has been measured yet" in report_page(read_run(root))


def test_the_report_tells_what_folds_did_under_their_names(record: RunRecord) -> None:
    text = report_page(record)
    own, first, second = text.partition("<h2>Decisions")[2].partition("<h2>What changed")[0].split("<h3>Fold ")
    assert first.startswith("1<") and second.startswith("2<")
    for piece in ("7 of 21 drawn", "6 pairs of 7 statements", "sft against vbi-1", "is over"):
        assert piece not in own and piece in first and piece in second
    assert "dropped: 1 timeout" in first and "dropped: 2 timeout" in second
    assert "40 of 120 drawn" in own and "40 of 120 drawn" not in first + second


def test_curves_and_costs_are_those_of_each_training(record: RunRecord, tmp_path: Path) -> None:
    alone = read_run(make_run(tmp_path / "alone"))
    assert read_curves(record.root, "loss") == read_curves(alone.root, "loss")
    trained = {stage.name: stage.trained for stage in record.stages if stage.kind == "train"}
    assert trained["train-labels-fold-1"] == trained["train-labels"] == 100_000


def test_the_card_says_the_n_that_decided(record: RunRecord) -> None:
    card = dict(model_card(record))
    assert f"n {ASKED};" in card["measured"] + ";" and "gate" in card["measured"]
    assert f"n = {ASKED}" in card["decided by"]


def test_answers_and_pairs_are_the_runs_own(record: RunRecord, tmp_path: Path) -> None:
    alone = read_run(make_run(tmp_path / "alone"))
    exams = read_exams(record.root)
    assert read_answers(record, exams) == read_answers(alone, read_exams(alone.root))
    assert read_play(record, exams) == read_play(alone, read_exams(alone.root))


def test_the_questions_of_a_fold_do_not_take_the_place_of_the_runs(tmp_path: Path) -> None:
    config = resolve("demo", [f"run_dir={tmp_path}"])
    run = Run(config)
    stages = HalfAnswered(config, run, None, {"towns": None}, None)  # type: ignore[arg-type, dict-item]
    stages.prompts = SimpleNamespace(text_to_sql=lambda *_: "prompt")  # type: ignore[assignment]
    candidates = [Candidate("sft", "m", "k")]
    stages.answers("labels", candidates, {"gate": Exam(QUESTIONS), "test": Exam(QUESTIONS)})
    stages.for_fold(1).answers("labels", candidates, {"gate": Exam(QUESTIONS[:2]), "test": Exam([])})
    run.close()
    assert {name: len(rows) for name, rows in read_exams(run.root).items()} == {"gate": 10, "test": 10}


def test_pairs_of_a_fold_are_not_shown_before_the_run_has_its_own(tmp_path: Path) -> None:
    root = make_run(tmp_path, folds=1)
    events = (root / "events.jsonl").read_text().splitlines(keepends=True)
    first = next(i for i, line in enumerate(events) if '"phrased"' in line and "fold" not in line)
    assert "30 of 40 statements became pairs" in report_page(read_run(root))
    (root / "events.jsonl").write_text("".join(events[:first]))
    text = report_page(read_run(root))  # what is in the folder of pairs, the fold has left
    assert "became pairs" not in text and "No synthetic pairs yet" in text


def test_the_lineage_says_whose_a_model_is(record: RunRecord) -> None:
    models = [row[0] for row in lineage_rows(record)[1]]
    assert models.count("vbi-1") == 1
    assert models.count("fold 1: vbi-1") == models.count("fold 2: vbi-1") == 1

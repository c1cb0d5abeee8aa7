"""What people say of answers becomes labels of the next run."""

from __future__ import annotations

from pathlib import Path

import pytest

from spftsql.config import DataConfig
from spftsql.errors import UserError
from spftsql.evaluation.benchmarks import load_benchmark
from spftsql.serving.feedback import labelled_examples, read_feedback, store_feedback


def test_the_last_word_on_a_question_counts(tmp_path: Path) -> None:
    def say(question: str, answer: str, rating: str, corrected: str = "") -> None:
        store_feedback(
            tmp_path,
            database="shop",
            question=question,
            answer=answer,
            rating=rating,
            corrected=corrected,  # type: ignore[arg-type]
        )

    say("How many?", "SELECT 1", "up")
    say("how  many?", "SELECT 1", "down", corrected="SELECT 2")
    say("Who?", "SELECT 3", "up")
    say("Who?", "SELECT 3", "down")  # on second thoughts
    say("When?", "SELECT 4", "down")
    say("Where?", "SELECT 5", "up")
    say("Where?", "SELECT 6", "down")  # of another answer
    labels = {label.question: label.sql for label in labelled_examples(tmp_path, ["shop"])}
    assert labels == {"how  many?": "SELECT 2", "Where?": "SELECT 5"}
    assert len(read_feedback(tmp_path)) == 7


def test_a_run_learns_from_them_but_not_what_it_is_tested_on(tmp_path: Path) -> None:
    plain = load_benchmark(DataConfig(benchmark="demo"), 0, tmp_path / "plain")
    database = plain.databases[0].name
    folder = tmp_path / "feedback"
    tested = plain.test[0].question
    for question in ("a new question", tested.upper()):
        store_feedback(folder, database=database, question=question, answer="SELECT 1", rating="up")
    config = DataConfig(benchmark="demo", feedback=folder)
    taught = load_benchmark(config, 0, tmp_path / "plain")
    (label,) = taught.train[len(plain.train) :]
    assert (label.question, label.source, bool(label.template)) == ("a new question", "label", True)
    assert taught.version != plain.version and "1 labels" in taught.notes[-1]
    assert load_benchmark(config, 0, tmp_path / "plain").version == taught.version


def test_what_is_no_feedback_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a folder"):
        read_feedback(tmp_path / "none")
    (tmp_path / "x.parquet").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot be read"):
        read_feedback(tmp_path)

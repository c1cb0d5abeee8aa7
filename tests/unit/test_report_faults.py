"""What engines failed with is no wrong SQL: in a run's events, in `status`, on the report and in the model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from spftsql.recipes import resolve
from spftsql.records import Example, GenerationRequest, Sample, Verdict, VerificationRequest
from spftsql.reporting.lineage_report import model_card
from spftsql.reporting.report_page import report_page
from spftsql.reporting.run_record import RunRecord, read_run
from spftsql.reporting.status import render, status_tree
from spftsql.runs import Run
from spftsql.selfplay.candidates import Candidate, Exam
from spftsql.selfplay.stages import Stages
from spftsql.selfplay.table import Result, method_row

QUESTIONS = [Example(f"t{i}", "towns", f"question {i}", "SELECT 1", "label", "t", "easy") for i in range(10)]
FAULT = "set aside: the engine failed 4 times with this request: killed"


class HalfAnswered(Stages):
    """Stages whose model is right about the first five questions of an exam, and whose engine dies of the others."""

    def verified(
        self,
        title: str,
        requests: Sequence[GenerationRequest],
        candidates: Sequence[Candidate],
        examples: Mapping[str, Example],
        before: Path | None = None,
    ) -> tuple[list[Sample], list[VerificationRequest], dict[str, Verdict]]:
        faults = [FAULT if request.id[-1] >= "5" else None for request in requests]
        samples = [
            Sample(r.id, r.db_id, r.model, 0, "" if fault else "SELECT 1", 1, "error" if fault else "stop", fault)
            for r, fault in zip(requests, faults, strict=True)
        ]
        checks = [VerificationRequest(f"{s.id}/0", s.db_id, s.text, "SELECT 1", "strict") for s in samples]
        verdicts = {
            check.id: Verdict(
                check.id, check.db_id, "unverifiable" if fault else "equal", "", 0.0, 1, False, "", "", fault
            )
            for check, fault in zip(checks, faults, strict=True)
        }
        return samples, checks, verdicts


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    config = resolve("demo", [f"run_dir={tmp_path}"])
    run = Run(config)
    stages = HalfAnswered(config, run, None, {"towns": None}, None)  # type: ignore[arg-type, dict-item]
    stages.prompts = SimpleNamespace(text_to_sql=lambda *_: "prompt")  # type: ignore[assignment]
    answers = stages.answers("labels", [Candidate("sft", "m", "k")], {"test": Exam(QUESTIONS), "gate": Exam(QUESTIONS)})
    row = method_row("SFT", "sft", answers["sft"]["test"], None)
    assert (row.correct, row.n, row.verdicts) == (5, 5, {"equal": 5, "fault": 5})
    run.write("result.json", Result((row,), (), "sft", "m", {"towns": "towns.sqlite"}).to_json())
    run.event("finished", served="sft")
    run.close()
    return read_run(run.root)


def test_the_status_says_what_the_table_says(record: RunRecord) -> None:
    (candidate,) = status_tree(record)["candidates"]
    for exam in ("test", "gate"):
        assert (candidate[exam]["right"], candidate[exam]["n"], candidate[exam]["accuracy"]) == (5, 5, 1.0)
        assert candidate[exam]["verdicts"] == {"equal": 5, "fault": 5}
        assert candidate[exam]["interval"][1] == 1.0


def test_what_is_printed_counts_no_faults(record: RunRecord, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    Console(width=200).print(render(record))
    said = capsys.readouterr().out
    assert "test (n 5)" in said and "gate (n 5)" in said
    assert "1.000 (0.566–1.000)" in said and "0.500" not in said


def test_the_report_counts_no_faults(record: RunRecord) -> None:
    text = report_page(record)
    assert "test, sft: 1.000 (0.566 to 1.000)" in text and "0.500" not in text
    assert "sft: equal 5 of 5" in text  # a bar of the verdicts is one of what is known
    assert '<th scope="col">fault</th>' in text and "unverifiable</th>" not in text


def test_the_model_card_counts_no_faults(record: RunRecord) -> None:
    measured = dict(model_card(record))["measured"]
    assert measured == "test 1.000 (0.566–1.000), n 5; gate 1.000 (0.566–1.000), n 5"

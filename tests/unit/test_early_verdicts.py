"""Samples are verified while others are written: each statement once, whatever is cut off, and as by itself."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from spftsql.config import Config
from spftsql.errors import Fault
from spftsql.execution import LocalExecution
from spftsql.generation import local
from spftsql.generation.checkpoint import Checkpoint, Prompt
from spftsql.generation.engine import Completed
from spftsql.generation.local import generate_dataset
from spftsql.progress import Reporter
from spftsql.prompts import PromptBuilder
from spftsql.records import (
    Example,
    GenerationRequest,
    Sample,
    Verdict,
    VerificationRequest,
    read_records,
    write_records,
)
from spftsql.runs import Run
from spftsql.selfplay.candidates import Candidate
from spftsql.selfplay.stages import Stages
from spftsql.verification.local import verify_dataset
from spftsql.verification.samples import Checks, early_verdicts
from tests.streaming import Speaker, asked, checks, settings, statements, towns


def alike(verdict: Verdict) -> tuple[object, ...]:
    return verdict.id, verdict.status, verdict.reason, verdict.row_count, verdict.digest


class Slow(Speaker):
    """Waits, before each next part, for the verdicts of those before: they come only if they need not wait for it."""

    folder: Path

    def _complete(self, checkpoint: Checkpoint, prompts: Iterator[tuple[int, Prompt]]) -> Iterator[Completed]:
        for number, done in enumerate(super()._complete(checkpoint, prompts)):
            if number and number % 8 == 0:
                deadline = time.monotonic() + 30
                while len(list((self.folder / "verdicts").glob("*.parquet"))) < number // 8 - 1:
                    assert time.monotonic() < deadline, "no verdicts while samples are written"
                    time.sleep(0.01)
            yield done


Asked = tuple[list[GenerationRequest], Checks]


@pytest.fixture
def stage(tiny_models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Forty requests on disk, what they are compared with, and an engine that answers them."""
    requests = asked(tiny_models[0], 40)
    write_records(tmp_path / "requests.parquet", requests, GenerationRequest)
    found = checks(tmp_path, requests, towns(tmp_path))
    Slow.folder = found.folder
    monkeypatch.setattr(local, "open_engine", Slow)
    return requests, found


def test_verdicts_come_while_samples_are_written_and_are_those_of_the_stage_alone(stage: Asked, tmp_path: Path) -> None:
    requests, early = stage
    engines, verifiers = generate_dataset(
        tmp_path / "requests.parquet", tmp_path / "samples", settings(), lambda *_: None, early
    )
    found = early_verdicts(early.folder)
    wanted = statements(read_records(tmp_path / "samples", Sample))
    assert sorted(r.id for r in found) == sorted(f"{r.id}/0" for r in requests) and set(found) == set(wanted)
    write_records(tmp_path / "wanted.parquet", wanted, VerificationRequest)
    alone = verify_dataset(
        tmp_path / "wanted.parquet", tmp_path / "verdicts", early.sources, settings(), lambda *_: None
    )
    verdicts = read_records(tmp_path / "verdicts", Verdict)
    assert sorted(map(alike, found.values())) == sorted(map(alike, verdicts))
    assert {v.status for v in verdicts} == {"equal", "error"}
    assert (engines.who, engines.rows, verifiers.rows, alone.rows) == ("engines", 40, 40, 40)
    assert 0 < verifiers.busy_s <= verifiers.workers * verifiers.wall_s and 0 <= verifiers.idle <= 1


class Stop(Exception):
    """An interruption, such as Ctrl-C."""


def test_an_interrupted_stage_verifies_what_was_left(stage: Asked, tmp_path: Path) -> None:
    _, early = stage

    def stop(done: int, total: int) -> None:
        if done >= 24:
            raise Stop

    with pytest.raises(Stop):
        generate_dataset(tmp_path / "requests.parquet", tmp_path / "samples", settings(), stop, early)
    stored = sorted((early.folder / "verdicts").iterdir())
    assert stored
    stored[0].unlink()  # as if it had been killed before this part's turn
    before = {file.name: file.stat().st_mtime_ns for file in stored[1:]}
    generate_dataset(tmp_path / "requests.parquet", tmp_path / "samples", settings(), lambda *_: None, early)
    after = {file.name: file.stat().st_mtime_ns for file in (early.folder / "verdicts").iterdir()}
    assert before.items() <= after.items(), "verified again"
    assert set(early_verdicts(early.folder)) == set(statements(read_records(tmp_path / "samples", Sample)))


class Counting(LocalExecution):
    """Counts the statements that a verification stage of its own is asked for."""

    asked = 0

    def verify(self, source: Path, target: Path, progress: object):  # type: ignore[no-untyped-def]
        """See `LocalExecution`."""
        self.asked += len(read_records(source, VerificationRequest))
        return super().verify(source, target, progress)  # type: ignore[arg-type]


def stages_in(folder: Path, config: Config, early: Checks) -> tuple[Stages, Counting]:
    config = config.model_copy(update={"run_dir": folder})
    execution = Counting(config, early.sources)
    stages = Stages(config, Run(config), execution, dict(early.databases), Reporter(Console(file=io.StringIO())))
    stages.prompts = PromptBuilder(config.prompt, None)
    return stages, execution


def test_the_verification_stage_takes_what_is_there_and_executes_the_rest(
    stage: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "open_engine", Speaker)
    requests, early = stage
    examples = {e.id: e for e in read_records(early.examples, Example)}
    candidate = Candidate("tiny", requests[0].model, "key")
    stages, execution = stages_in(tmp_path / "a", settings(), early)
    samples, asked_, verdicts = stages.verified("round-1", requests, [candidate], examples)
    assert execution.asked == 0 and len(samples) == len(verdicts) == 40
    assert not list((stages.run.root / "early").iterdir())
    uses = [line for line in (stages.run.root / "events.jsonl").read_text().splitlines() if '"use"' in line]
    assert len(uses) == 2
    assert stages.verified("round-1", requests, [candidate], examples)[2] == verdicts  # kept: nothing is done again
    stages.run.close()

    # One whose early verdicts are lost, or about other statements, has them executed: the same verdicts.
    other, counted = stages_in(tmp_path / "b", settings(), early)
    folder = tmp_path / "half"
    half = [request for request in asked_ if int(request.id[1:].split("/")[0]) < 20]
    wrong = VerificationRequest(asked_[30].id, "towns", "SELECT 1", None, "strict")
    Checks(folder, early.examples, early.databases, early.prompt, early.policy).store(
        "part.parquet", [*half, wrong], [*(verdicts[r.id] for r in half), verdicts[wrong.id]]
    )
    again = other.verify("round-1", asked_, folder)
    assert counted.asked == 20 and not folder.exists()
    assert sorted(map(alike, again.values())) == sorted(map(alike, verdicts.values()))
    other.run.close()


def test_what_could_not_be_had_early_is_asked_again(tmp_path: Path, tiny_models: list[str]) -> None:
    requests = asked(tiny_models[0], 3)
    early = checks(tmp_path, requests, towns(tmp_path))
    rows = [VerificationRequest(f"{r.id}/0", "towns", r.prompt, None, "strict") for r in requests]
    good = Verdict(rows[0].id, "towns", "ran", "", 1.0, 1, False, "d", "sqlite")
    bad = Verdict(rows[1].id, "towns", "unverifiable", "fault", 0.0, 0, False, "", "", fault="the pool was away")
    early.store("part.parquet", rows, [good, bad])
    assert early_verdicts(early.folder) == {rows[0]: good}


def test_a_full_disk_while_verdicts_are_kept_is_a_fault(
    stage: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, early = stage
    monkeypatch.setattr(local, "open_engine", Speaker)
    (early.folder / "verdicts").write_text("in the way of the folder")
    with pytest.raises((Fault, OSError)):
        generate_dataset(tmp_path / "requests.parquet", tmp_path / "samples", settings(), lambda *_: None, early)
    (early.folder / "verdicts").unlink()
    generate_dataset(tmp_path / "requests.parquet", tmp_path / "samples", settings(), lambda *_: None, early)
    assert len(early_verdicts(early.folder)) == 40

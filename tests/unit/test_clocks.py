"""The clock on the wall may jump: timestamps say what it said, and nothing waits, ends or is taken over by it."""

from __future__ import annotations

import ast
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spftsql.errors import UserError
from spftsql.generation.local import generate_dataset
from spftsql.generation.work import read_lineage
from spftsql.recipes import resolve, validate
from spftsql.records import GenerationRequest, Sample, read_records, write_records
from spftsql.reporting.run_record import read_run
from spftsql.reporting.status import status_tree
from spftsql.run_storage import RunStorage
from spftsql.runs import Run
from tests.conftest import CHECKOUT

HOUR = 3600.0

# Where the wall clock is read, and what for: never to end or to begin something.
TIMESTAMPS = {
    "spftsql/serving/feedback.py": "when an answer was rated",
    "spftsql/generation/unit_run.py": "when a part was begun, in its lineage",
    "spftsql/submitting/command.py": "how long a job of another machine has run, shown only",
    "spftsql/serving/keys.py": "when a key was made and revoked",
    "spftsql/reporting/run_record.py": "how long the stage of another process has run, shown only",
    "spftsql/run_storage.py": "when a lease ends, which is not believed without a look (below)",
    "spftsql/runs.py": "when an event happened",
    "spftsql/training/loggers.py": "when a value was logged",
    "spftsql/verification/cache.py": "the hour in which a result was last used, for what goes first from a full cache",
    "serve/openai_api.py": "`created` of an answer",
    "serve/service.py": "`created` of a model",
}


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A wall clock that is an hour ahead at one look and an hour behind at the next."""
    real, jumps = time.time, itertools.cycle((HOUR, -HOUR, 0.0))
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    yield


def reads_the_wall_clock(path: Path) -> bool:
    """Whether a module names `time.time`, `datetime.now` or `datetime.utcnow`."""
    named = {ast.unparse(n) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
    return bool(named & {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today"})


def test_only_timestamps_are_of_the_wall_clock() -> None:
    modules = [path for root in ("spftsql", "serve", "jobs", "cluster") for path in (CHECKOUT / root).rglob("*.py")]
    found = {str(path.relative_to(CHECKOUT)) for path in modules if reads_the_wall_clock(path)}
    assert found == set(TIMESTAMPS), "durations and deadlines are of time.monotonic(); a timestamp is named above"


def test_parts_of_samples_are_not_cut_by_a_clock_that_jumps(
    tiny_models: list[str], tmp_path: Path, jumping: None
) -> None:
    config = validate(
        {
            "name": "test",
            "data": {"benchmark": "demo"},
            "model": {"path": "unused", "max_length": 96},
            "generation": {"engine": "transformers", "batch_size": 8},
        },
        "test",
    )
    prompt = "<|user|>name the longest rivers<|assistant|>"
    requests = [
        GenerationRequest(
            id=str(i), db_id="db", prompt=prompt, model=tiny_models[0], n=1, temperature=0.0, max_tokens=4, seed=i
        )
        for i in range(16)
    ]
    write_records(tmp_path / "requests.parquet", requests, GenerationRequest)
    generate_dataset(tmp_path / "requests.parquet", tmp_path / "samples", config, lambda done, total: None)
    assert sorted(s.id for s in read_records(tmp_path / "samples", Sample)) == sorted(r.id for r in requests)
    lineages = [read_lineage(part) for part in (tmp_path / "samples").glob("*.parquet")]
    assert len(lineages) == 2  # of 8 requests each: none was stored early because an hour seemed to be over
    assert all(0 <= lineage["ended"] - lineage["began"] < HOUR / 2 for lineage in lineages)


def storage(folder: Path, clock: Callable[[], float], pause: Callable[[float], None] = lambda s: None) -> RunStorage:
    return RunStorage(folder.as_uri(), "r", clock=clock, pause=pause)


def test_a_clock_that_is_ahead_takes_no_run_from_the_machine_at_work(tmp_path: Path) -> None:
    first = storage(tmp_path, lambda: 1000.0)
    with pytest.raises(UserError, match="in use by"):
        storage(tmp_path, lambda: 1000.0 + HOUR, pause=lambda seconds: first._renew_once())
    first.keep_state(tmp_path)  # it has lost nothing
    first.close()


def test_a_run_left_by_a_machine_whose_clock_was_ahead_can_be_taken_soon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = storage(tmp_path, lambda: 1000.0 + HOUR)
    lease = (tmp_path / "r" / "lease.json").read_text()
    left.close()
    (tmp_path / "r" / "lease.json").write_text(lease)  # as if it had been killed
    watched: list[float] = []
    second = storage(tmp_path, lambda: 1000.0, pause=watched.append)
    assert max(watched) > 60  # longer than it takes to renew a lease
    assert "was left by" in capsys.readouterr().err
    second.close()


def test_a_machine_whose_clock_jumps_does_not_take_back_what_it_has_lost(tmp_path: Path) -> None:
    now = [1000.0]
    first = storage(tmp_path, lambda: now[0])
    second = storage(tmp_path, lambda: 1000.0 + 400)  # the first was asleep, and its lease is over
    now[0] += 2 * HOUR
    first._renew_once()
    lease = json.loads((tmp_path / "r" / "lease.json").read_text())
    assert lease["owner"] == second._owner
    first.close()
    second.close()


def test_what_a_run_tells_of_its_time_is_never_negative(tmp_path: Path, jumping: None) -> None:
    config = resolve("demo", [f"run_dir={tmp_path}"])
    for _ in range(2):
        run = Run(config)
        run.stage("base", 1, lambda folder: None)
        with pytest.raises(ZeroDivisionError):
            run.stage("train-labels", 2, lambda folder: 1 / 0)  # type: ignore[arg-type, return-value]
        run.close()
    record = read_run(tmp_path / "demo")
    assert [stage.name for stage in record.stages] == ["base", "train-labels"]
    assert all(0 <= stage.seconds < HOUR / 2 for stage in record.stages)
    assert "base" in json.dumps(status_tree(record), default=str)

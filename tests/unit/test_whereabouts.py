"""`spftsql status` names the machines on which engines, verifiers and trainers of the stage at work have started."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from spftsql.errors import Fault
from spftsql.recipes import resolve
from spftsql.reporting.run_record import RunRecord, read_run
from spftsql.reporting.status import status_tree, where
from spftsql.runs import Run
from spftsql.whereabouts import forget_where, say_where, whereabouts


def seen_while(tmp_path: Path, work: Callable[[Path], None]) -> RunRecord:
    """The run as somebody sees it while it builds a stage with `work`."""
    run, seen = Run(resolve("demo", [f"run_dir={tmp_path}"])), []

    def build(folder: Path) -> None:
        work(folder)
        seen.append(read_run(run.root))

    run.stage("generate-round-1", 1, build)
    run.close()
    assert status_tree(read_run(run.root))["workers"] == {}
    return seen[0]


def test_the_machines_of_the_stage_at_work_are_named(tmp_path: Path) -> None:
    def work(folder: Path) -> None:
        for host in ("node-b", "node-a", "node-b"):
            say_where(folder / ".samples.work", "engines", host)
        say_where(folder / ".samples.work", "verifiers", "node-c")
        say_where(folder / ".ray_train", "trainers")

    record = seen_while(tmp_path, work)
    workers = {"engines": ["node-a", "node-b"], "verifiers": ["node-c"], "trainers": [socket.gethostname()]}
    assert status_tree(record)["workers"] == workers
    assert f"; engines on node-a, node-b; verifiers on node-c; trainers on {socket.gethostname()}" in where(record)


def test_a_stage_whose_workers_have_not_started_says_nothing_of_them(tmp_path: Path) -> None:
    record = seen_while(tmp_path, lambda folder: None)
    assert status_tree(record)["workers"] == {} and " on " not in where(record).partition(", at stage")[2]


def test_a_stage_that_goes_on_forgets_the_machines_of_before(tmp_path: Path) -> None:
    say_where(tmp_path / "work", "engines", "gone")
    forget_where(tmp_path / "work")
    say_where(tmp_path / "work", "engines", "here")
    assert whereabouts(tmp_path) == {"engines": ["here"]}


def test_what_cannot_be_written_stops_no_worker(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("in the way of the folder")
    say_where(tmp_path / "work", "engines")
    forget_where(tmp_path / "work")
    assert whereabouts(tmp_path) == {} and whereabouts(tmp_path / "none") == {}


@pytest.mark.parametrize("name", ["engines", "engines@", "@node", "cooks@node"])
def test_other_files_are_passed_over(tmp_path: Path, name: str) -> None:
    say_where(tmp_path / "work", "engines", "here")
    (tmp_path / "work" / "whereabouts" / name).touch()
    assert whereabouts(tmp_path) == {"engines": ["here"]}


def test_the_pool_is_asked_where_its_workers_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spftsql.verification import stage

    monkeypatch.setattr(stage, "pool_stats", lambda timeout_s: [{"node": "node-a"}, {"node": "node-b"}])
    stage.say_where_verifiers(tmp_path / ".samples.work")
    assert whereabouts(tmp_path) == {"verifiers": ["node-a", "node-b"]}

    def silent(timeout_s: float) -> list[dict[str, str]]:
        raise Fault("no verifier pool runs")

    monkeypatch.setattr(stage, "pool_stats", silent)
    stage.say_where_verifiers(tmp_path / ".samples.work")

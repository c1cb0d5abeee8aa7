"""Runs whose finished stages are kept in another place: a folder here, a real S3 server in the long test."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spftsql.config import Config
from spftsql.errors import Fault, UserError
from spftsql.recipes import validate
from spftsql.run_storage import RunStorage
from spftsql.runs import Run


def config(run_dir: Path, storage: str) -> Config:
    tree = {"name": "r", "run_dir": str(run_dir), "storage": storage, "data": {"benchmark": "demo"}}
    return validate({**tree, "model": {"path": "unused"}}, where="test")


def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spftsql.run_storage._SETTLE_S", 0.0)


def build(folder: Path) -> None:
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "rows.parquet").write_bytes(os.urandom(100_000))
    (folder / "deep" / "er" / "empty").write_bytes(b"")


def never(folder: Path) -> None:
    raise AssertionError(f"{folder} is built again")


def goes_on_elsewhere(tmp_path: Path, storage: str) -> None:
    first = Run(config(tmp_path / "one", storage))
    stage = first.stage("a", 1, build)
    with pytest.raises(UserError, match="in use by"):
        Run(config(tmp_path / "two", storage))
    first.write("result.json", "{}")
    first.close()
    content = {path.relative_to(stage.path): path.read_bytes() for path in stage.path.rglob("*") if path.is_file()}
    shutil.rmtree(tmp_path / "one")

    second = Run(config(tmp_path / "two", storage))
    fetched = second.stage("a", 1, never)
    assert content == {p.relative_to(fetched.path): p.read_bytes() for p in fetched.path.rglob("*") if p.is_file()}
    built = second.stage("b", 2, build)
    second.close()
    events = [json.loads(line) for line in (tmp_path / "two" / "r" / "events.jsonl").read_text().splitlines()]
    assert [e["outcome"] for e in events if e["event"] == "stage"] == ["started", "built", "kept", "started", "built"]
    assert built.path.is_dir() and (tmp_path / "two" / "r" / "stages").is_dir()


def test_a_run_goes_on_from_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_pause(monkeypatch)
    goes_on_elsewhere(tmp_path, (tmp_path / "store").as_uri())
    assert (tmp_path / "store" / "r" / "result.json").read_text() == "{}"
    assert not (tmp_path / "store" / "r" / "lease.json").exists()
    assert not list((tmp_path / "store").rglob("*.tmp"))


def test_a_stage_without_its_marker_is_not_there_and_is_copied_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_pause(monkeypatch)
    store = tmp_path / "store"
    run = Run(config(tmp_path / "one", store.as_uri()))
    stage = run.stage("a", 1, build)
    run.close()
    (store / "r" / "stages" / f"{stage.path.name}.complete").unlink()  # as if killed while it was copied
    (store / "r" / "stages" / stage.path.name / "rows.parquet").write_bytes(b"half")
    lost = Run(config(tmp_path / "two", store.as_uri()))
    with pytest.raises(AssertionError, match="built again"):
        lost.stage("a", 1, never)
    lost.close()
    again = Run(config(tmp_path / "one", store.as_uri()))
    again.stage("a", 1, never)
    again.close()
    copy = (store / "r" / "stages" / stage.path.name / "rows.parquet").read_bytes()
    assert copy == (stage.path / "rows.parquet").read_bytes()


def test_a_damaged_copy_is_a_fault_and_leaves_no_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_pause(monkeypatch)
    store = tmp_path / "store"
    run = Run(config(tmp_path / "one", store.as_uri()))
    stage = run.stage("a", 1, build)
    run.close()
    (store / "r" / "stages" / stage.path.name / "rows.parquet").write_bytes(b"half")
    other = Run(config(tmp_path / "two", store.as_uri()))
    with pytest.raises(Fault, match="100000 bytes"):
        other.stage("a", 1, never)
    assert not (tmp_path / "two" / "r" / "stages" / stage.path.name).exists()
    other.close()


def test_leases_end_and_are_taken_over(tmp_path: Path) -> None:
    now = [1000.0]
    url = tmp_path.as_uri()
    first = RunStorage(url, "r", clock=lambda: now[0], pause=lambda seconds: None)
    now[0] += 299
    with pytest.raises(UserError, match="in use by"):
        RunStorage(url, "r", clock=lambda: now[0], pause=lambda seconds: None)
    first._renew_once()
    now[0] += 299
    with pytest.raises(UserError, match="in use by"):
        RunStorage(url, "r", clock=lambda: now[0], pause=lambda seconds: None)
    now[0] += 2  # the first has not renewed for 301 s
    second = RunStorage(url, "r", clock=lambda: now[0], pause=lambda seconds: None)
    first._renew_once()
    folder = tmp_path / "local" / "stages" / "a-1"
    folder.mkdir(parents=True)
    with pytest.raises(Fault, match="taken over"):
        first.keep(folder)
    first.close()
    second.keep(folder)
    assert (tmp_path / "r" / "lease.json").exists()  # the first did not give back what is no longer its own
    second.close()
    assert not (tmp_path / "r" / "lease.json").exists()


def test_of_many_at_the_same_moment_one_gets_the_run(tmp_path: Path) -> None:
    barrier = threading.Barrier(6)
    got: list[RunStorage] = []

    def pause(seconds: float) -> None:
        barrier.wait(20)  # everybody has written

    def take() -> None:
        try:
            got.append(RunStorage(tmp_path.as_uri(), "r", pause=pause))
        except UserError:
            return

    # All look before anybody writes: the worst order.
    looked = threading.Barrier(6)
    lease = RunStorage._lease

    def look_together(self: RunStorage) -> dict[str, object] | None:
        found = lease(self)
        if not getattr(self, "_looked", False):
            self._looked = True  # type: ignore[attr-defined]
            looked.wait(20)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunStorage, "_lease", look_together)
        threads = [threading.Thread(target=take) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(got) == 1
    got[0].close()


def test_a_store_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="storage nowhere://x cannot be opened"):
        Run(config(tmp_path, "nowhere://x"))
    run = Run(config(tmp_path, tmp_path.as_uri()).model_copy(update={"storage": None}))  # and the lock is free
    run.close()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server_of = pytest.importorskip("moto.server")
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    import boto3

    endpoint = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket="runs")
    yield f"s3://runs/here?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    server.stop()


@pytest.mark.long
def test_a_run_goes_on_from_another_machine_with_s3(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_pause(monkeypatch)
    goes_on_elsewhere(tmp_path, bucket)


@pytest.mark.long
def test_a_store_that_goes_away_is_a_fault_and_what_is_built_stays(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_pause(monkeypatch)
    run = Run(config(tmp_path, bucket))
    storage = run._storage
    assert storage is not None

    class Gone:
        type_name = "s3"

        def __getattr__(self, name: str) -> object:
            raise OSError("curlCode: 7, Couldn't connect to server")

    files, storage._files = storage._files, Gone()
    with pytest.raises(Fault, match="connect"):
        run.stage("a", 1, build)
    storage._files = files
    began = time.monotonic()
    run.stage("a", 1, never)
    run.close()
    assert time.monotonic() - began < 60

"""Generation and verification in one stream on Ray: verdicts while samples are written, each row once, resumed."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from spftsql.generation.stage import EngineActor, generate_dataset_ray
from spftsql.records import GenerationRequest, Sample, Verdict, read_records, write_records
from spftsql.telemetry import gauge
from spftsql.verification.samples import early_verdicts
from tests import loops
from tests.killing import descendants, title
from tests.streaming import SpeakerActor, asked, checks, settings, statements, there_and_back, towns

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.usefixtures("ray_session")]


class SlowActor(SpeakerActor):
    """A second for every part."""

    def __call__(self, batch):  # type: ignore[no-untyped-def]
        """See `EngineActor`."""
        for row in super().__call__(batch):
            yield row
            time.sleep(1)


def test_samples_are_verified_while_others_are_written(tiny_models: list[str], tmp_path: Path) -> None:
    requests = asked(tiny_models[0], 64)
    write_records(tmp_path / "requests.parquet", requests, GenerationRequest)
    early = checks(tmp_path, requests, towns(tmp_path))
    seen: list[tuple[int, int]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            parts = len(list((tmp_path / ".samples.work" / "parts").glob("part-*.parquet")))
            seen.append((parts, len(list((early.folder / "verdicts").glob("part-*.parquet")))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    actor: type[EngineActor] = SlowActor
    try:
        engines, verifiers = generate_dataset_ray(
            tmp_path / "requests.parquet", tmp_path / "samples", settings(), lambda *_: None, actor, early
        )
    finally:
        over.set()
        watcher.join()
    assert any(verified > 0 and parts < 8 for parts, verified in seen), "all verdicts came after the last sample"
    samples = read_records(tmp_path / "samples", Sample)
    found = early_verdicts(early.folder)
    assert sorted(s.id for s in samples) == sorted(r.id for r in requests) and set(found) == set(statements(samples))
    assert {v.status for v in found.values()} == {"equal", "error"}
    assert (engines.rows, verifiers.rows) == (64, 64) and verifiers.busy_s > 0

    # What a call that was cut off has left without verdicts is verified, and nothing else.
    (tmp_path / "samples").rename(tmp_path / "first")
    kept, *lost = sorted((early.folder / "verdicts").iterdir())
    stamp = kept.stat().st_mtime_ns
    parts = tmp_path / ".samples.work" / "parts"
    (tmp_path / ".samples.work" / "journals").mkdir(parents=True)
    (tmp_path / "first").rename(parts)
    for file in lost[:2]:
        file.unlink()
    engines, verifiers = generate_dataset_ray(
        tmp_path / "requests.parquet", tmp_path / "samples", settings(), lambda *_: None, actor, early
    )
    assert (engines.rows, verifiers.rows) == (0, 16) and kept.stat().st_mtime_ns == stamp
    assert early_verdicts(early.folder).keys() == found.keys()
    assert {v.id for v in found.values()} == {f"{r.id}/0" for r in requests}


def test_the_loops_metrics_reach_prometheus(tiny_models: list[str], tmp_path: Path) -> None:
    """The names under which Ray exports what engines and verifiers count are those of the dashboard."""
    import httpx
    import ray

    requests = asked(tiny_models[0], 16)
    write_records(tmp_path / "requests.parquet", requests, GenerationRequest)
    early = checks(tmp_path, requests, towns(tmp_path))
    gauge("spftsql_loop_stage_done", 16, run="test", stage="generate-test")
    generate_dataset_ray(
        tmp_path / "requests.parquet", tmp_path / "samples", settings(), lambda *_: None, SpeakerActor, early
    )
    (node,) = ray.nodes()
    wanted = {
        "ray_spftsql_loop_tokens_total",
        "ray_spftsql_loop_requests_total",
        "ray_spftsql_loop_engine_seconds_total",
        "ray_spftsql_verifications_total",
        "ray_spftsql_verifier_seconds_total",
        "ray_spftsql_loop_stage_done",
    }
    deadline, found = time.monotonic() + 60, set[str]()
    while not wanted <= found and time.monotonic() < deadline:
        page = httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10).text
        found |= {name for name in wanted if f"\n{name}{{" in page}
        time.sleep(1)
    assert found == wanted


class DyingActor(SpeakerActor):
    """Dies once, in the middle of a unit, after it has stored parts."""

    def __call__(self, batch):  # type: ignore[no-untyped-def]
        """See `EngineActor`."""
        import os

        for number, row in enumerate(super().__call__(batch)):
            flag = self._work.folder / "died"
            if number == 3 and not flag.exists():
                flag.touch()
                os._exit(1)
            yield row


def test_parts_of_a_unit_whose_actor_died_are_verified_once(tiny_models: list[str], tmp_path: Path) -> None:
    requests = asked(tiny_models[0], 64)
    write_records(tmp_path / "requests.parquet", requests, GenerationRequest)
    early = checks(tmp_path, requests, towns(tmp_path))
    _, verifiers = generate_dataset_ray(
        tmp_path / "requests.parquet", tmp_path / "samples", settings(), lambda *_: None, DyingActor, early
    )
    samples = read_records(tmp_path / "samples", Sample)
    assert sorted(s.id for s in samples) == sorted(r.id for r in requests)
    assert set(early_verdicts(early.folder)) == set(statements(samples)) and verifiers.rows == 64
    verdicts: list[Verdict] = [v for f in (early.folder / "verdicts").iterdir() for v in read_records(f, Verdict)]
    assert len(verdicts) == len({v.id for v in verdicts}) == 64


def test_questions_are_answered_while_others_are_written(tmp_path: Path) -> None:
    """The same votes as with one engine, which asks everything first; the vote stage finds them all."""
    from spftsql.records import PairRow

    settings = {"execution": "ray", "generation.engine": "transformers", "synthesis.filter": "ranked"}
    settings |= {"vbi.optimization.steps": "20", "selfplay.iterations": "0", "generation.batch_size": "8"}
    settings |= {"synthesis.candidates": "2", "synthesis.votes": "2", "cluster.cpus": "10"}
    pairs = {}
    for engines in (1, 4):
        run = tmp_path / str(engines)
        loops.finish(run, {**settings, "generation.actors": str(engines)}, run.with_suffix(".log"), timeout=600)
        pairs[engines] = {
            row.id: (row.question, row.votes, row.confidence, row.candidates.count('"equal"'))
            for row in read_records(run / "demo" / "pairs" / "round-1.parquet", PairRow)
        }
        assert not list((run / "demo" / "early").glob("votes-*"))
        uses = [e for e in loops.events(run) if e["event"] == "use" and e["stage"] == "generate-votes-1"]
        written = {e["workers"]: e["rows"] for e in uses if e["who"] == "engines" and e["rows"]}
        requests = len(
            read_records(
                next((run / "demo" / "stages").glob("generate-votes-1-*")) / "requests.parquet", GenerationRequest
            )
        )
        assert written == ({1: requests} if engines == 1 else {3: requests})
    assert pairs[1] == pairs[4] and any(votes for _, votes, _, _ in pairs[1].values())


def test_an_engine_of_the_second_model_that_is_killed_loses_nothing(tiny_models: list[str], tmp_path: Path) -> None:
    requests = asked(tiny_models[0], 64)
    write_records(tmp_path / "requests.parquet", requests, GenerationRequest)
    back = there_and_back(tmp_path, tiny_models[1])
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while not killed and not over.wait(0.02):
            if list((back.folder / "requests").glob("*.parquet")):
                actors = [pid for pid in descendants(os.getpid()) if b"OnwardActor" in title(pid)]
                if actors:
                    os.kill(actors[0], signal.SIGKILL)
                    killed.append(actors[0])

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        first, second, verifiers = generate_dataset_ray(
            tmp_path / "requests.parquet", tmp_path / "samples", settings(actors=4), lambda *_: None, onward=back
        )
    finally:
        over.set()
        killer.join()
    assert killed and (first.workers, second.workers, first.rows, second.rows) == (2, 2, 64, 128)
    wanted = {f"{request.id}/{k}/0" for request in requests for k in range(2)}
    found = early_verdicts(back.checks.folder)
    assert verifiers.rows >= 128 and {v.id for v in found.values()} == wanted and len(found) == 128

    asked_later = [request for request, _ in back.asked(read_records(tmp_path / "samples", Sample))]
    write_records(tmp_path / "later.parquet", asked_later, GenerationRequest)
    (again,) = generate_dataset_ray(
        tmp_path / "later.parquet", tmp_path / "votes", settings(actors=4), lambda *_: None, before=back.folder
    )
    assert again.rows == 0 and {s.id for s in read_records(tmp_path / "votes", Sample)} == {r.id for r in asked_later}

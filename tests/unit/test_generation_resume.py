"""A generation stage in one process: what is stored stays, what fails is asked again or set aside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from spftsql.config import Config
from spftsql.errors import Fault, UserError
from spftsql.generation import local
from spftsql.generation.engine import EngineDied, RequestsFailed, open_engine
from spftsql.generation.local import generate_dataset
from spftsql.generation.work import asked_again, open_work, read_journal
from spftsql.recipes import validate
from spftsql.records import SET_ASIDE, GenerationRequest, Sample, read_records, write_records
from tests.engines import POISON, Poisoned

Engines = Callable[[type[Exception]], Poisoned]


def settings(**generation: object) -> Config:
    tree = {
        "name": "test",
        "data": {"benchmark": "demo"},
        "model": {"path": "unused", "max_length": 96},
        "generation": {"engine": "transformers", "batch_size": 8, **generation},
    }
    return validate(tree, "test")


def ask(number: int, model: str, **changes: Any) -> GenerationRequest:
    prompt = f"<|user|>name the {number} longest rivers<|assistant|>"
    fields = {"id": f"{Path(model).name}/{number}", "db_id": f"db{number % 3}", "prompt": prompt, "model": model}
    return GenerationRequest(**(fields | {"n": 1, "temperature": 0.0, "max_tokens": 6, "seed": number} | changes))


def ordered(samples: list[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda s: (s.id, s.index))


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    """Makes the next stages of this process use an engine that fails with poison."""

    def use(failure: type[Exception]) -> Poisoned:
        engine = Poisoned(settings(), failure)
        monkeypatch.setattr(local, "open_engine", lambda config: engine)
        return engine

    return use


def run(folder: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Sample]:
    generate_dataset(folder / "requests.parquet", folder / "samples", settings(), progress)
    return ordered(read_records(folder / "samples", Sample))


class Stop(Exception):
    """An interruption from outside, such as Ctrl-C."""


def stop_at(rows: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= rows:
            raise Stop

    return progress


def test_interrupted_stage_goes_on_from_what_is_stored(
    tiny_models: list[str], tmp_path: Path, engines: Engines
) -> None:
    requests = [ask(i, model, n=2, temperature=1.0) for i in range(20) for model in tiny_models[:2]]
    requests += [ask(99, tiny_models[0], prompt="", db_id="removed")]
    write_records(tmp_path / "requests.parquet", requests, GenerationRequest)
    with pytest.raises(Stop):
        run(tmp_path, stop_at(24))
    parts = sorted((tmp_path / ".samples.work" / "parts").iterdir())
    before = {file.name: file.read_bytes() for file in parts}
    broken = parts[0]
    broken.write_bytes(before[broken.name][: len(before[broken.name]) // 2])
    (broken.parent / f".{broken.name}.1.tmp").write_bytes(b"half")
    lost = {row.id for row in from_bytes(before[broken.name], tmp_path)}

    engine = engines(RequestsFailed)
    steps: list[tuple[int, int]] = []
    samples = run(tmp_path, lambda *step: steps.append(step))
    assert samples == ordered(open_engine(settings()).generate(requests))
    kept = {row.id for name, part in before.items() if name != broken.name for row in from_bytes(part, tmp_path)}
    assert len(kept) >= 15
    assert lost <= set(engine.asked) | {"0/99"}
    assert not set(engine.asked) & kept
    assert len(engine.asked) == len(set(engine.asked))
    assert steps[0] == (len(kept), len(requests))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["requests.parquet", "samples"]


def test_requests_that_were_with_an_engine_when_it_was_stopped_are_counted(
    tiny_models: list[str], tmp_path: Path, engines: Engines
) -> None:
    requests = [ask(i, tiny_models[0], db_id="db0") for i in range(39)]
    stopper = ask(39, tiny_models[0], db_id="db0", prompt=f"<|user|>{POISON}<|assistant|>")
    write_records(tmp_path / "requests.parquet", [*requests, stopper], GenerationRequest)
    engines(Stop)
    with pytest.raises(Stop):
        run(tmp_path)
    left = tmp_path / ".samples.work"
    stored = {row.id for row in read_records(left / "parts", Sample)}
    given = {id_ for file in (left / "journals").iterdir() for call in read_journal(file) for id_ in call}
    in_flight = given - stored
    assert stored and stopper.id in in_flight
    engines(RequestsFailed).calm = True
    run(tmp_path)
    assert asked_again(tmp_path / "samples") == len(in_flight)

    whole = tmp_path / "whole"
    whole.mkdir()
    write_records(whole / "requests.parquet", [*requests, stopper], GenerationRequest)
    assert run(whole) == ordered(read_records(tmp_path / "samples", Sample))
    assert asked_again(whole / "samples") == 0


def from_bytes(part: bytes, folder: Path) -> list[Sample]:
    file = folder / "part"
    file.write_bytes(part)
    rows = read_records(file, Sample)
    file.unlink()
    return rows


def test_flipped_bits_and_repeated_parts_are_taken_out(
    tiny_models: list[str], tmp_path: Path, engines: Engines
) -> None:
    requests = [ask(i, tiny_models[0]) for i in range(24)]
    write_records(tmp_path / "requests.parquet", requests, GenerationRequest)
    with pytest.raises(Stop):
        run(tmp_path, stop_at(16))
    parts = sorted((tmp_path / ".samples.work" / "parts").iterdir())
    content = bytearray(parts[0].read_bytes())
    content[40] ^= 1  # in the first page of the first column
    parts[0].write_bytes(content)
    # The same rows once more, as an actor leaves them that was thought to be dead.
    parts[1].with_name(parts[1].name.replace("part-", "part-zombie")).write_bytes(parts[1].read_bytes())
    engine = engines(RequestsFailed)
    assert run(tmp_path) == ordered(open_engine(settings()).generate(requests))
    assert len(engine.asked) == 16


def test_other_requests_and_other_weights_use_nothing_of_what_is_stored(
    tiny_models: list[str], tmp_path: Path, engines: Engines
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in Path(tiny_models[0]).iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    requests = [ask(i, str(model)) for i in range(24)]
    write_records(tmp_path / "requests.parquet", requests, GenerationRequest)
    with pytest.raises(Stop):
        run(tmp_path, stop_at(8))
    (model / "model.safetensors").write_bytes((Path(tiny_models[1]) / "model.safetensors").read_bytes())
    engine = engines(RequestsFailed)
    assert run(tmp_path) == ordered(open_engine(settings()).generate(requests))
    assert len(engine.asked) == 24


def test_complete_target_of_the_same_requests_is_taken_as_it_is(
    tiny_models: list[str], tmp_path: Path, engines: Engines
) -> None:
    write_records(tmp_path / "requests.parquet", [ask(i, tiny_models[0]) for i in range(9)], GenerationRequest)
    first = run(tmp_path)
    engine = engines(RequestsFailed)
    assert run(tmp_path) == first
    assert not engine.asked


@pytest.mark.parametrize("failure", [EngineDied, RequestsFailed])
def test_request_that_fails_every_time_is_set_aside_and_the_others_are_answered(
    tiny_models: list[str], tmp_path: Path, engines: Engines, failure: type[Exception]
) -> None:
    requests = [ask(i, tiny_models[0], max_tokens=4) for i in range(60)]
    requests += [ask(i, tiny_models[0], prompt=f"<|user|>{POISON} {i}<|assistant|>") for i in (100, 101)]
    write_records(tmp_path / "requests.parquet", requests, GenerationRequest)
    engine = engines(failure)
    samples = run(tmp_path)
    aside = {sample.id: sample.error or "" for sample in samples if sample.error}
    assert set(aside) == {"0/100", "0/101"}
    assert all(error.startswith(SET_ASIDE) and "4 times" in error and "_Wrapped" in error for error in aside.values())
    assert [s for s in samples if not s.error] == ordered(open_engine(settings()).generate(requests[:60]))
    assert sum(id_ in aside for id_ in engine.asked) <= 4 * len(aside)


def test_engine_that_fails_whatever_it_is_asked_is_a_fault(
    tiny_models: list[str], tmp_path: Path, engines: Engines
) -> None:
    requests = [ask(i, tiny_models[0], prompt=f"{POISON} {i}") for i in range(50)]
    write_records(tmp_path / "requests.parquet", requests, GenerationRequest)
    engine = engines(RequestsFailed)
    with pytest.raises(Fault, match="5 times and answered nothing"):
        run(tmp_path)
    assert len(engine.asked) < 10


def test_too_many_set_aside_are_a_fault_and_are_asked_again(
    tiny_models: list[str], tmp_path: Path, engines: Engines
) -> None:
    requests = [ask(i, tiny_models[0], prompt=f"{POISON} {i}" if i % 4 == 1 else f"river {i}") for i in range(45)]
    write_records(tmp_path / "requests.parquet", requests, GenerationRequest)
    engines(RequestsFailed)
    with pytest.raises(Fault, match="failed with 11 of 45"):
        run(tmp_path)
    opened = open_work(tmp_path / "requests.parquet", tmp_path / "samples", settings(), 1)
    left = sum(unit.stop - unit.start for unit in opened.units)
    assert 11 <= left < 45


def test_removed_checkpoint_is_named_and_the_stage_goes_on_when_it_is_back(
    tiny_models: list[str], tmp_path: Path, engines: Engines
) -> None:
    second = tmp_path / "second"
    second.mkdir()
    for file in Path(tiny_models[1]).iterdir():
        os.link(file, second / file.name)
    requests = [ask(i, model) for i in range(16) for model in (tiny_models[0], str(second))]
    write_records(tmp_path / "requests.parquet", requests, GenerationRequest)

    def remove(done: int, total: int) -> None:
        if done and second.exists():
            second.rename(tmp_path / "elsewhere")

    with pytest.raises(UserError, match="second is not a model directory"):
        run(tmp_path, remove)
    with pytest.raises(UserError, match="second is not a model directory"):
        run(tmp_path)
    (tmp_path / "elsewhere").rename(second)
    engine = engines(RequestsFailed)
    assert run(tmp_path) == ordered(open_engine(settings()).generate(requests))
    assert len(engine.asked) == 16


def test_requests_are_put_in_order_with_few_in_memory(
    tiny_models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spftsql.generation.work._PASS", 512)
    requests = [ask(i, tiny_models[i % 2], db_id=f"db{i * 7 % 11}") for i in range(1500)]
    write_records(tmp_path / "requests.parquet", requests, GenerationRequest, chunk=100)
    opened = open_work(tmp_path / "requests.parquet", tmp_path / "samples", settings(), 3)
    rows = read_records(opened.work.requests, GenerationRequest)
    assert rows == sorted(requests, key=lambda r: (r.model, r.db_id))
    assert pq.ParquetFile(opened.work.requests).metadata.row_group(0).num_rows == 256
    found = [row for unit in opened.units for row in opened.work.read(unit)]
    assert sorted(found, key=lambda r: r.id) == sorted(requests, key=lambda r: r.id)


KILLED = """
import os, signal, sys
from pathlib import Path
from spftsql.generation.local import generate_dataset
from tests.unit.test_generation_resume import settings
folder = Path(sys.argv[1])
stop = lambda done, total: done >= 16 and os.kill(os.getpid(), signal.SIGKILL)
generate_dataset(folder / "requests.parquet", folder / "samples", settings(), stop)
"""


@pytest.mark.long
def test_killed_process_loses_nothing_that_was_stored(tiny_models: list[str], tmp_path: Path, engines: Engines) -> None:
    requests = [ask(i, tiny_models[0], n=2, temperature=1.0) for i in range(40)]
    write_records(tmp_path / "requests.parquet", requests, GenerationRequest)
    code = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, timeout=300).returncode
    assert code == -signal.SIGKILL
    stored = {row.id for row in read_records(tmp_path / ".samples.work" / "parts", Sample)}
    assert len(stored) >= 16
    engine = engines(RequestsFailed)
    assert run(tmp_path) == ordered(open_engine(settings()).generate(requests))
    assert sorted(engine.asked) == sorted(r.id for r in requests if r.id not in stored)

"""What a second model is asked while the first writes, and how a later stage finds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from spftsql.generation.onward import answer, divided
from spftsql.generation.work import had_before, open_work, request_hash
from spftsql.records import GenerationRequest, Sample, read_records, write_records
from spftsql.verification.samples import SampleReader
from tests.streaming import GOLD, Back, Speaker, settings, there_and_back


@pytest.fixture
def back(tiny_models: list[str], tmp_path: Path) -> Back:
    return there_and_back(tmp_path, tiny_models[0])


def part_of(folder: Path, name: str, ids: Sequence[str]) -> Path:
    samples = [Sample(i, "towns", "first", 0, f"question {i}", 3, "stop") for i in ids]
    write_records(folder / name, samples, Sample)
    return folder / name


def answered(part: Path, back: Back) -> list[Path]:
    engine = Speaker(settings())
    try:
        return answer(part, back, settings(), engine, {"engine": "test"}, on_death=lambda error: None)
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("engines", "share", "wanted"),
    [(1, 0.8, (1, 0)), (3, 0.8, (3, 0)), (4, 0.8, (1, 3)), (8, 0.8, (2, 6)), (8, 0.01, (7, 1)), (64, 0.99, (1, 63))],
)
def test_engines_are_divided_where_there_are_enough(engines: int, share: float, wanted: tuple[int, int]) -> None:
    assert divided(engines, share) == wanted


def test_a_part_is_answered_once_and_its_statements_can_be_read(back: Back, tmp_path: Path) -> None:
    part = part_of(tmp_path, "part-a.parquet", ["q0", "q1", "q2"])
    files = answered(part, back)
    samples = [sample for file in files for sample in read_records(file, Sample)]
    assert sorted((s.id, s.text) for s in samples) == [
        (f"q{i}/{k}", GOLD.format(k)) for i in range(3) for k in range(2)
    ]
    stamps = [file.stat().st_mtime_ns for file in files]
    assert [file.stat().st_mtime_ns for file in answered(part, back)] == stamps
    reader = SampleReader(back.checks)
    first = [check for file in files for check in reader.statements(file)]
    more = [
        check
        for file in answered(part_of(tmp_path, "part-b.parquet", ["q3"]), back)
        for check in reader.statements(file)
    ]
    assert sorted(check.id for check in [*first, *more]) == [f"q{i}/{k}/0" for i in range(4) for k in range(2)]
    assert {check.gold_sql for check in first} == {GOLD.format(0)}


def test_a_later_stage_takes_what_was_asked_in_the_same_words(back: Back, tmp_path: Path) -> None:
    answered(part_of(tmp_path, "part-a.parquet", ["q0", "q1"]), back)
    answered(part_of(tmp_path, "part-b.parquet", ["q2"]), back)
    ids = ["q0", "q1", "q2", "q3"]
    wanted = [request for request, _ in back.asked([Sample(i, "towns", "first", 0, "", 0, "stop") for i in ids])]
    wanted[0] = replace(wanted[0], prompt="something else")
    wanted[3] = replace(wanted[3], seed=7)
    hashes = {request.id: request_hash(request) for request in wanted}
    had = {sample.id for samples, _ in had_before(back.folder, hashes) for sample in samples}
    assert had == {"q0/1", "q1/0", "q2/0", "q2/1"}

    write_records(tmp_path / "requests.parquet", wanted, GenerationRequest)
    for _ in range(2):  # the second one finds what the first has taken
        opened = open_work(tmp_path / "requests.parquet", tmp_path / "samples", settings(), 1, back.folder)
        left = {request.id for unit in opened.units for request in opened.work.read(unit)}
        assert opened.stored == 4 and left == set(hashes) - had
    assert not list(had_before(tmp_path / "nothing", hashes))

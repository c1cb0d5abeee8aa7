"""What a generation stage has on disk while it runs, so that an interrupted one goes on where it was.

Beside the target lies a folder with the requests that are still to be answered (in the order of work), the samples so
far in parts, and journals that say which requests an engine was given (`unit_run`). A part is a Parquet file of whole
requests, written under another name first and checked when the stage starts and when it ends: one that was half
written, that is of other requests, or that repeats another is taken out. At the end the parts become the target.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spftsql.config import Config
from spftsql.errors import Fault
from spftsql.generation.checkpoint import adapter_base, check_checkpoint
from spftsql.generation.units import Group, plan
from spftsql.records import (
    SET_ASIDE,
    GenerationRequest,
    Sample,
    arrow_schema,
    content_hash,
    from_table,
    read_records,
    to_table,
)

_MOST_SET_ASIDE = 0.01  # of the requests of a stage, and
_FEW = 10  # requests in any case; beyond both, the engine is at fault and not the requests
_ROW_GROUP = 256  # requests that are read together
_PASS = 16_384  # requests that are in memory at a time while they are put in order
_KEY, _LINEAGE = b"spftsql.key", b"spftsql.lineage"


@dataclass(frozen=True)
class Unit:
    """Requests `start` up to `stop` of the work, for one engine. `failures` says how often some of them failed."""

    id: str
    start: int
    stop: int
    failures: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """The folder of a stage; `key` is a hash of what its samples depend on."""

    folder: Path
    key: str

    @property
    def requests(self) -> Path:
        """The requests that are still to be answered, by model and database."""
        return self.folder / "requests.parquet"

    @property
    def parts(self) -> Path:
        """The folder of samples."""
        return self.folder / "parts"

    @property
    def journals(self) -> Path:
        """The folder of what engines were given."""
        return self.folder / "journals"

    def read(self, unit: Unit) -> Iterator[GenerationRequest]:
        """The requests of a unit, a few at a time in memory."""
        with pq.ParquetFile(self.requests) as file:
            for group in range(unit.start // _ROW_GROUP, -(-unit.stop // _ROW_GROUP)):
                first = group * _ROW_GROUP
                begin, end = max(unit.start - first, 0), min(unit.stop - first, _ROW_GROUP)
                yield from from_table(file.read_row_group(group).slice(begin, end - begin), GenerationRequest)

    def store(self, unit_id: str, samples: Sequence[Sample], lineage: Mapping[str, object]) -> str:
        """Writes the samples of whole requests as a part, and returns its name. `lineage` (JSON) says how they came."""
        ids = sorted({sample.id for sample in samples})
        name = f"part-{unit_id}-{content_hash(ids)}-{len(ids)}.parquet"
        self._write(self.parts / name, to_table(samples, Sample), lineage)
        return name

    def stored(self, parts: Iterable[str] | None = None) -> int:
        """How many requests have samples, by the names of the parts: all of them, or these."""
        names = self.part_names() if parts is None else parts
        return sum(int(Path(name).stem.rpartition("-")[2]) for name in names)

    def stored_of(self, unit_id: str) -> set[str]:
        """The ids of a unit's requests that have samples."""
        ids: set[str] = set()
        for name in self.parts_of(unit_id):
            ids.update(_sound(self.parts / name, self.key).column("id").to_pylist())
        return ids

    def parts_of(self, unit_id: str) -> list[str]:
        """The names of a unit's parts, in the order in which they were written."""
        files = self.parts.glob(f"part-{unit_id}-*.parquet")
        return [file.name for file in sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name))]

    def check(self, wanted: Mapping[str, int]) -> set[str]:
        """Leaves one good set of rows for every request that has it; returns the ids of these.

        `wanted` is the number of samples by request. What is broken, foreign, incomplete or there twice is removed.
        """
        done: set[str] = set()
        for file in sorted(self.parts.iterdir()):
            try:
                table = _sound(file, self.key)
            except (pa.ArrowException, OSError, ValueError):
                file.unlink(missing_ok=True)
                continue
            rows = from_table(table, Sample)
            good = {request for request in _complete(rows, wanted) if request not in done}
            kept = [row for row in rows if row.id in good]
            if len(kept) < len(rows):
                file.unlink()
                if kept:
                    self.store("mended", kept, read_lineage(file, table))
            done |= good
        return done

    def part_names(self) -> list[str]:
        """The files of the parts that are stored, in order; they keep these names in the finished stage."""
        return sorted(file.name for file in self.parts.glob("part-*.parquet"))

    def finish(self, wanted: Mapping[str, int], target: Path) -> None:
        """Makes the parts the target, when there are samples for every request.

        Raises `Fault` when requests are missing, or so many were set aside that it cannot be their fault; these are
        then asked again by the next call.
        """
        done = self.check(wanted)
        if len(done) < len(wanted):
            missing = sorted(set(wanted) - done)
            raise Fault(f"generation is incomplete: {len(missing)} of {len(wanted)} requests, {missing[:3]}; run again")
        aside = [file for file in self.parts.iterdir() if _set_aside(file)]
        reasons = Counter(reason for file in aside for reason in _set_aside(file))
        if reasons.total() > max(_FEW, _MOST_SET_ASIDE * len(wanted)):
            for file in aside:
                file.unlink()
            (reason, _), *_ = reasons.most_common(1)
            raise Fault(f"the engine failed with {reasons.total()} of {len(wanted)} requests ({reason}); run again")
        if not wanted:
            self._write(self.parts / "part-0.parquet", to_table([], Sample), {})
        shutil.rmtree(target, ignore_errors=True)
        target.unlink(missing_ok=True)
        self.parts.rename(target)
        shutil.rmtree(self.folder)

    def _write(self, path: Path, table: pa.Table, lineage: Mapping[str, object]) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        notes = {_KEY: self.key.encode(), _LINEAGE: json.dumps(lineage).encode()}
        try:
            pq.write_table(table.replace_schema_metadata(notes), temporary, write_page_checksum=True)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        temporary.replace(path)


@dataclass(frozen=True)
class Opened:
    """A stage that can begin: its folder, the samples wanted by request, how many are there, and the units left."""

    work: Work
    wanted: Mapping[str, int]
    stored: int
    units: list[Unit]


def open_work(source: Path, target: Path, config: Config, engines: int, before: Path | None = None) -> Opened:
    """Plans what is left to do for the requests of `source` (a Parquet file or folder), for so many engines.

    Samples that the folder `before` has for exactly these requests are taken from there (`generation.onward`).
    Raises `UserError` when a model cannot be used, `Fault` when ids are not unique.
    """
    files = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
    rows = pa.concat_tables([pq.read_table(file, columns=["id", "db_id", "model", "n"]) for file in files])
    ids = rows.column("id").to_pylist()
    wanted = dict(zip(ids, rows.column("n").to_pylist(), strict=True))
    if len(wanted) < len(ids):
        raise Fault("the requests of a generation stage do not have unique ids")
    models = pc.unique(rows.column("model")).to_pylist()
    for model in sorted(models):
        check_checkpoint(model)
    work = Work(target.with_name(f".{target.name}.work"), _key(files, models, config))
    work.parts.mkdir(parents=True, exist_ok=True)
    work.journals.mkdir(exist_ok=True)
    _adopt(target, work)
    if before is not None:
        _take(before, files, work)
    done = work.check(wanted)
    failures = _failures(work, done)
    rows = rows.append_column("at", pa.array(np.arange(len(ids))))
    rows = rows.filter(pa.array([id_ not in done for id_ in ids], pa.bool_()))
    rows = rows.sort_by([("model", "ascending"), ("db_id", "ascending"), ("at", "ascending")])
    _write_in_order(files, rows.column("at").to_numpy(), len(ids), work.requests)
    order: list[str] = rows.column("id").to_pylist()
    units = []
    for span in plan(_groups(rows), engines, config.generation.batch_size):
        mine = order[span.start : span.stop]
        suspects = {id_: failures[id_] for id_ in mine if id_ in failures} if failures else {}
        units.append(Unit(content_hash(work.key, mine), span.start, span.stop, suspects))
    return Opened(work, wanted, len(done), units)


def read_lineage(file: Path, table: pa.Table | None = None) -> dict[str, Any]:
    """What is noted in a part of samples: engine, times, prompt tokens, and by request seconds and cached tokens."""
    schema = pq.read_schema(file) if table is None else table.schema
    lineage: dict[str, Any] = json.loads((schema.metadata or {}).get(_LINEAGE, b"{}"))
    return lineage


def asked_again(samples: Path) -> int:
    """Of the requests of a finished stage those that an engine had been given before, when it or the run was stopped.

    With vLLM they were in another batch then, and may be answered otherwise than without the interruption.
    """
    return sum(int(read_lineage(file).get("again", 0)) for file in samples.glob("*.parquet"))


def request_seconds(samples: Path) -> dict[str, float]:
    """How long engines had each request of a stage's samples, by its id; those of which it is not noted are missing."""
    return {id_: s for file in samples.glob("*.parquet") for id_, s in read_lineage(file).get("seconds", {}).items()}


def prompt_hashes(requests: Path) -> dict[str, str]:
    """Hashes of the prompts in a file of requests, by their ids."""
    columns = (
        table.to_pydict() for table in pq.ParquetFile(requests).iter_batches(_ROW_GROUP, columns=["id", "prompt"])
    )
    return {id_: content_hash(text) for one in columns for id_, text in zip(one["id"], one["prompt"], strict=True)}


def _sound(file: Path, key: str) -> pa.Table:
    """The rows of a part. Raises `ValueError`, `OSError` or `ArrowException` when it is not one of ours, or broken."""
    table = pq.ParquetFile(file, page_checksum_verification=True).read()
    if not table.schema.equals(arrow_schema(Sample)) or (table.schema.metadata or {}).get(_KEY) != key.encode():
        raise ValueError(f"{file} belongs to other requests")
    return table


def _complete(rows: Sequence[Sample], wanted: Mapping[str, int]) -> Iterator[str]:
    """The requests that have all their samples in `rows` and nothing else, or one error row and nothing else."""
    for request, group in groupby(sorted(rows, key=lambda row: (row.id, row.index)), key=lambda row: row.id):
        found = list(group)
        failed = len(found) == 1 and found[0].error is not None
        all_there = [row.index for row in found if row.error is None] == list(range(wanted.get(request, -1)))
        if request in wanted and (failed or all_there):
            yield request


def _set_aside(file: Path) -> list[str]:
    errors = pq.read_table(file, columns=["error"]).column("error").drop_null().to_pylist()
    return [error for error in errors if error.startswith(SET_ASIDE)]


def _key(files: Sequence[Path], models: Sequence[str], config: Config) -> str:
    """A hash of the requests, the models and the settings that the samples depend on."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    folders = {model: adapter_base(model) for model in sorted(models)}
    weights = [
        (file.name, file.stat().st_size, file.stat().st_mtime_ns)
        for folder in sorted({*folders, *filter(None, folders.values())})
        for file in sorted(Path(folder).iterdir())
        if file.is_file()
    ]
    model = config.model
    return content_hash(digest.hexdigest(), folders, weights, config.generation.engine, model.dtype, model.max_length)


def _adopt(target: Path, work: Work) -> None:
    """Takes back a target that was complete already, when these are its requests: there is nothing to do but to say so.

    A stage may be interrupted between the last step here and the caller's note that it is done.
    """
    if target.is_dir() and not any(work.parts.iterdir()):
        keys = {(pq.read_schema(file).metadata or {}).get(_KEY) for file in target.glob("*.parquet")}
        if keys == {work.key.encode()}:
            work.parts.rmdir()
            target.rename(work.parts)


def _take(before: Path, files: Sequence[Path], work: Work) -> None:
    """Stores the samples that `before` has for the requests in `files`, under the same names each time."""
    requests = {
        request.id: request_hash(request)
        for file in files
        for batch in pq.ParquetFile(file).iter_batches(_ROW_GROUP)
        for request in from_table(pa.Table.from_batches([batch]), GenerationRequest)
    }
    for samples, lineage in had_before(before, requests):
        work.store("before", samples, lineage)


def had_before(folder: Path, requests: Mapping[str, str]) -> Iterator[tuple[list[Sample], dict[str, Any]]]:
    """Of a round trip's folder, part by part: samples whose request is the one that is asked now, and what is noted.

    `requests` are hashes (`request_hash`) by id: where the first model was asked again it may have said other things.
    """
    for target in sorted((folder / "samples").glob("*/")):
        asked = read_records(folder / "requests" / f"{target.name}.parquet", GenerationRequest)
        same = {request.id for request in asked if requests.get(request.id) == request_hash(request)}
        for file in sorted(target.glob("*.parquet")):
            samples = [sample for sample in read_records(file, Sample) if sample.id in same]
            if samples:
                yield samples, read_lineage(file)


def request_hash(request: GenerationRequest) -> str:
    """A hash of all that a request says."""
    return content_hash(asdict(request))


def _failures(work: Work, done: set[str]) -> dict[str, int]:
    """How often each request that is not done was in an engine that failed, by the journals of earlier runs.

    What the journals say is added up in one file before they are removed; the file names them, lest they count twice.
    """
    file = work.folder / "failures.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"counts": {}, "journals": []}
    journals = sorted(work.journals.iterdir())
    counts: Counter[str] = Counter(kept["counts"])
    for journal in journals:
        if journal.name not in kept["journals"]:
            for call in read_journal(journal):
                counts.update(call)
    counts = Counter({id_: count for id_, count in counts.items() if id_ not in done})
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps({"counts": counts, "journals": [j.name for j in journals]}), encoding="utf-8")
    temporary.replace(file)
    for journal in journals:
        journal.unlink()
    return counts


def read_journal(file: Path) -> list[list[str]]:
    """The calls of an engine: the ids of the requests that each was given."""
    calls: dict[int, list[str]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # the writer was killed in the middle of the line
            continue
        calls.setdefault(entry["call"], []).extend(entry["ids"])
    return list(calls.values())


def _groups(rows: pa.Table) -> list[Group]:
    """Rows and samples by model and database, in the order of the (sorted) rows."""
    found = rows.group_by(["model", "db_id"], use_threads=False).aggregate([("n", "count"), ("n", "sum")])
    columns = (found.column(name).to_pylist() for name in ("model", "db_id", "n_count", "n_sum"))
    return [Group(*values) for values in zip(*columns, strict=True)]


def _write_in_order(files: Sequence[Path], order: np.ndarray, total: int, target: Path) -> None:
    """Copies the rows numbered `order` (of `total` in all files) in that order, in row groups of 256.

    Reads the files once for every 16,384 rows, so that no more than those are in memory.
    """
    place = np.full(total, -1)
    place[order] = np.arange(len(order))
    temporary = target.with_suffix(".tmp")
    schema = arrow_schema(GenerationRequest)
    with pq.ParquetWriter(temporary, schema) as writer:
        for first in range(0, len(order), _PASS):
            pieces, places, at = [], [], 0
            for batch in (batch for file in files for batch in pq.ParquetFile(file).iter_batches(_ROW_GROUP)):
                mine = place[at : at + len(batch)]
                at += len(batch)
                chosen = (mine >= first) & (mine < first + _PASS)
                if chosen.any():
                    pieces.append(pa.Table.from_batches([batch.filter(pa.array(chosen))]).select(schema.names))
                    places.append(mine[chosen])
            table = pa.concat_tables(pieces).take(pa.array(np.argsort(np.concatenate(places))))
            writer.write_table(table.cast(schema), row_group_size=_ROW_GROUP)
    temporary.replace(target)

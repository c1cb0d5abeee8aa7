"""A unit of requests through an engine, whatever the engine does: answered, or set aside with a reason.

An engine that dies takes with it what it was working on, and nobody can tell which request killed it. So what an engine
is given is written down first; requests without samples are asked again in smaller and smaller company, and one that
engines failed with four times, twice of them alone, is set aside. Every other request is answered once.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any
from uuid import uuid4

from spftsql.errors import Fault
from spftsql.generation.checkpoint import error_row
from spftsql.generation.engine import Engine, EngineDied, Finished, RequestsFailed
from spftsql.generation.work import Unit, Work, read_journal
from spftsql.records import SET_ASIDE, GenerationRequest, Sample
from spftsql.telemetry import count

# How many requests are asked together, by how often engines have failed with them; then they are set aside.
_TOGETHER: tuple[int | None, ...] = (None, 32, 1, 1)
_HOPELESS = 5  # failures of an engine that has answered nothing: it is not the requests
_JOURNAL_ROWS = 256
_STORE_S = 5.0  # what is finished is stored at least so often, and then goes on to whoever verifies it


@dataclass(frozen=True)
class Stored:
    """A part that was stored: its name, and how many requests have their samples in it."""

    part: str
    requests: int


class UnitRun:
    """One attempt at a unit; a later attempt, in this process or another, goes on from what is stored."""

    def __init__(self, work: Work, unit: Unit, engine: Engine, part_rows: int, lineage: Mapping[str, object]) -> None:
        """Parts have `part_rows` requests; `lineage` (JSON) is noted in each."""
        self._work, self._unit, self._engine = work, unit, engine
        self._part_rows, self._lineage = part_rows, lineage
        self._done = work.stored_of(unit.id)
        calls = [set(c) - self._done for f in work.journals.glob(f"{unit.id}.*") for c in read_journal(f)]
        failed = [call for call in calls if call]
        self._failed_calls = len(failed)
        self._failures = Counter(unit.failures) + Counter(id_ for call in failed for id_ in call)
        self._journal = work.journals / f"{unit.id}.{uuid4().hex}"
        self._calls = 0
        self._reason = "it died"

    def run(self, on_death: Callable[[EngineDied], None]) -> Iterator[Stored]:
        """Yields each part as it is stored. `on_death` is called with an engine that died.

        `on_death` ends this process, or makes the engine start anew. Raises `UserError` when a model cannot be used,
        `Fault` when the engine cannot load it, or fails whatever it is asked.
        """
        order = [request.id for request in self._work.read(self._unit)]
        while left := [id_ for id_ in order if id_ not in self._done]:
            if self._failed_calls >= _HOPELESS and not self._done:
                raise Fault(f"the engine failed {self._failed_calls} times and answered nothing: {self._reason}")
            level = min(self._failures[id_] for id_ in left)
            chosen = [id_ for id_ in left if self._failures[id_] == level]
            if level >= len(_TOGETHER):
                yield self._set_aside(chosen)
                continue
            together = _TOGETHER[level] or len(chosen)
            for start in range(0, len(chosen), together):
                failed = yield from self._ask(chosen[start : start + together], on_death)
                if failed:
                    break

    def _ask(self, ids: Sequence[str], on_death: Callable[[EngineDied], None]) -> Generator[Stored, None, bool]:
        """One call of the engine; returns whether it failed. What was finished before is stored all the same."""
        part = _Part(self._engine)
        given: dict[int, _Given] = {}  # what the engine has, by its place among what it was given
        try:
            for done in self._engine.stream(self._noted(self._chosen(ids), given)):
                mine = given.pop(done.at)
                part.add(done, mine, again=self._failures[mine.request.id] > 0)
                if part.requests >= self._part_rows or part.age() > _STORE_S:
                    yield self._store(part)
                    part = _Part(self._engine)
        except (RequestsFailed, EngineDied) as error:
            if part.requests:
                yield self._store(part)
            self._reason = str(error)
            if isinstance(error, EngineDied):
                on_death(error)
            self._failed_calls += 1
            self._failures.update(one.request.id for one in given.values())
            return True
        if part.requests:
            yield self._store(part)
        return False

    def _chosen(self, ids: Iterable[str]) -> Iterator[GenerationRequest]:
        wanted = set(ids)
        return (request for request in self._work.read(self._unit) if request.id in wanted)

    def _noted(self, requests: Iterator[GenerationRequest], given: dict[int, _Given]) -> Iterator[GenerationRequest]:
        """The requests, each written down before the engine has it."""
        self._calls += 1
        at = 0
        while some := list(islice(requests, _JOURNAL_ROWS)):
            line = json.dumps({"call": self._calls, "ids": [request.id for request in some]})
            with self._journal.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            for request in some:
                given[at] = _Given(request, time.monotonic())
                yield request
                at += 1

    def _store(self, part: _Part) -> Stored:
        lineage = part.lineage()
        name = self._work.store(self._unit.id, part.samples, {**self._lineage, **lineage})
        self._done.update(sample.id for sample in part.samples)
        cached = sum(lineage["cached_tokens"].values())
        count("spftsql_loop_requests", part.requests)
        count("spftsql_loop_samples", len(part.samples))
        tokens = {"prompt": lineage["prompt_tokens"] - cached, "cached": cached, "written": lineage["tokens"]}
        for kind, number in tokens.items():
            count("spftsql_loop_tokens", number, kind=kind)
        count("spftsql_loop_engine_seconds", lineage["loading_s"], kind="loading")
        busy = lineage["ended"] - lineage["began"] - lineage["loading_s"]
        count("spftsql_loop_engine_seconds", busy, kind="busy")
        return Stored(name, part.requests)

    def _set_aside(self, ids: Iterable[str]) -> Stored:
        rows = [
            error_row(r, f"{SET_ASIDE}the engine failed {self._failures[r.id]} times with this request: {self._reason}")
            for r in self._chosen(ids)
        ]
        name = self._work.store(self._unit.id, rows, self._lineage)
        self._done.update(row.id for row in rows)
        return Stored(name, len(rows))


@dataclass(frozen=True, slots=True)
class _Given:
    """A request that an engine has taken, and when, on `time.monotonic`."""

    request: GenerationRequest
    taken: float


class _Part:
    """Samples that are not stored yet."""

    def __init__(self, engine: Engine) -> None:
        self.samples: list[Sample] = []
        self.requests = 0
        self._began, self._start = time.time(), time.monotonic()
        self._engine, self._loaded, self._stepped = engine, engine.loading_s, engine.steps
        self._prompt_tokens = self._again = 0
        self._cached: dict[str, int] = {}
        self._seconds: dict[str, float] = {}

    def add(self, done: Finished, given: _Given, again: bool) -> None:
        """Takes in what the engine is done with; `again` says that an engine had been given it before."""
        self.samples += done.samples
        self.requests += 1
        self._again += again
        self._prompt_tokens += done.prompt_tokens
        self._cached[given.request.id] = done.cached_tokens
        self._seconds[given.request.id] = round(time.monotonic() - given.taken, 3)

    def age(self) -> float:
        """Seconds since the part was begun, whatever the clock on the wall does meanwhile."""
        return time.monotonic() - self._start

    def lineage(self) -> dict[str, Any]:
        """When it was made (seconds since 1970), how long a model was loaded meanwhile, and what the cache had.

        `seconds` is how long the engine had each request, beside others.
        """
        tokens = sum(sample.tokens for sample in self.samples)
        return {
            "began": self._began,
            "ended": self._began + self.age(),
            "loading_s": round(self._engine.loading_s - self._loaded, 3),
            "steps": self._engine.steps - self._stepped,
            "prompt_tokens": self._prompt_tokens,
            "cached_tokens": self._cached,
            "seconds": self._seconds,
            "tokens": tokens,
            "again": self._again,
        }

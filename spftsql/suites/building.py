"""Makes the instances of a suite: candidates for all golds, some for each gold that needs more, and the choice."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from spftsql.config import SandboxConfig
from spftsql.databases.reflection import reflect
from spftsql.sandbox.execute import Sandbox
from spftsql.suites.golds import GoldFacts, read_golds
from spftsql.suites.instances import Style, make_rows, style
from spftsql.suites.mutations import mutants
from spftsql.suites.reader import read_source
from spftsql.suites.selection import Outcome, Target, choose, on_candidate, on_original
from spftsql.suites.writing import write_instance, write_twin

LIMITS = SandboxConfig(
    soft_seconds=5,
    hard_seconds=15,
    max_rows=20_000,
    max_bytes=16_000_000,
    memory_mb=1024,
    double_quoted_strings=True,
)
_PER_INSTANCE = 4  # candidates made for every instance wanted
_FEWEST, _MOST = 8, 48
_OWN_ROWS = (5, 10, 25, 60)  # of a table, in the further candidates for a gold with mutants left
_OWN = len(_OWN_ROWS)

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Built:
    """Golds with their mutants, the candidates chosen for each, and the files of the candidates in use."""

    targets: dict[int, Target] = field(default_factory=dict)
    chosen: dict[int, list[int]] = field(default_factory=dict)
    killed: dict[int, int] = field(default_factory=dict)  # bits of the mutants, by the original or a chosen candidate
    files: dict[int, Path] = field(default_factory=dict)
    candidates: int = 0


def build(
    db_id: str,
    database: Path,
    golds: Sequence[str],
    k: int,
    seed: int,
    workers: int,
    progress: Callable[[int, int], None],
    folder: Path,
) -> Built:
    """Builds into `folder`; golds are numbered by their places. The numbers of workers changes nothing but the time."""
    with ExitStack() as stack:
        sandboxes = [stack.enter_context(Sandbox(LIMITS)) for _ in range(workers)]
        return _Builder(db_id, database, golds, k, seed, sandboxes, progress, folder).build()


class _Builder:
    def __init__(
        self,
        db_id: str,
        database: Path,
        golds: Sequence[str],
        k: int,
        seed: int,
        sandboxes: Sequence[Sandbox],
        progress: Callable[[int, int], None],
        folder: Path,
    ) -> None:
        self.db_id, self.database, self.golds, self.k, self.seed = db_id, database, golds, k, seed
        self.sandboxes, self.progress, self.folder = sandboxes, progress, folder
        self.schema = reflect(db_id, database)
        self.facts = read_golds(golds, self.schema)
        self.source = read_source(database, self.schema, self.facts, seed)
        self.shared = min(_MOST, max(_FEWEST, _PER_INSTANCE * k))
        self.total, self.done = 2 * len(golds) + self.shared, 0

    def build(self) -> Built:
        built = Built()
        self.progress(0, self.total)
        targets = self._each(range(len(self.golds)), self._target)
        built.targets = {number: target for number, target in targets.items() if target is not None}
        outcomes: dict[int, dict[int, Outcome]] = {number: {} for number in built.targets}
        for candidate, by_gold in self._each(
            range(self.shared), lambda s, c: self._shared(s, c, built.targets)
        ).items():
            for number, outcome in by_gold.items():
                outcomes[number][candidate] = outcome
        own = self._each(range(len(self.golds)), lambda s, n: self._own(s, n, built.targets, outcomes))
        for number, found in own.items():
            if found:
                outcomes[number] |= found
        for number, target in built.targets.items():
            built.chosen[number] = choose(target, outcomes[number], self.k)
            built.killed[number] = target.dead
            for candidate in built.chosen[number]:
                built.killed[number] |= outcomes[number][candidate].killed
        used = sorted({candidate for chosen in built.chosen.values() for candidate in chosen})
        built.files = {candidate: self._file(candidate) for candidate in used}
        built.candidates = self.shared + sum(len(found) for found in own.values())
        for file in set(self.folder.glob("*.sqlite")) - set(built.files.values()):
            file.unlink()
        return built

    def _each(self, tasks: Iterable[T], work: Callable[[Sandbox, T], R]) -> dict[T, R]:
        """Does the work for every task, as many at once as there are sandboxes; in the order of the tasks."""
        left: queue.SimpleQueue[T] = queue.SimpleQueue()
        order = list(tasks)
        for task in order:
            left.put(task)
        results: dict[T, R] = {}
        lock = threading.Lock()

        def loop(sandbox: Sandbox) -> None:
            while True:
                try:
                    task = left.get_nowait()
                except queue.Empty:
                    return
                result = work(sandbox, task)
                with lock:
                    results[task] = result
                    self.done += 1
                    self.progress(self.done, self.total)

        with ThreadPoolExecutor(max_workers=len(self.sandboxes)) as threads:
            for future in [threads.submit(loop, sandbox) for sandbox in self.sandboxes]:
                future.result()
        return {task: results[task] for task in order}

    def _target(self, sandbox: Sandbox, number: int) -> Target | None:
        gold = self.golds[number]
        return on_original(sandbox, self.database, gold, mutants(gold, self.schema))

    def _shared(self, sandbox: Sandbox, candidate: int, targets: Mapping[int, Target]) -> dict[int, Outcome]:
        """A candidate for all golds; half of them are made around the literals of some of the golds."""
        rng = self._rng("shared", candidate)
        focus = self.facts if candidate % 2 else rng.sample(self.facts, max(1, len(self.facts) // 3))
        return self._try(sandbox, candidate, focus, style(candidate, rng), rng, targets)

    def _own(
        self,
        sandbox: Sandbox,
        number: int,
        targets: Mapping[int, Target],
        outcomes: Mapping[int, Mapping[int, Outcome]],
    ) -> dict[int, Outcome]:
        """Candidates around one gold, if mutants of it are left; those that kill one of them, or first show rows."""
        if number not in targets:
            return {}
        target, known = targets[number], outcomes[number]
        killed = target.dead
        for candidate in choose(target, known, self.k):
            killed |= known[candidate].killed
        filled = any(outcome.filled for outcome in known.values())
        found: dict[int, Outcome] = {}
        for attempt in range(_OWN):
            if filled and killed == (1 << len(target.mutants)) - 1:
                break
            candidate = self.shared + number * _OWN + attempt
            rng = self._rng("own", number, attempt)
            how = replace(style(attempt, rng), rows=_OWN_ROWS[attempt], witness=0.8)
            outcome = self._try(sandbox, candidate, [self.facts[number]], how, rng, {number: target}).get(number)
            if outcome is not None and (outcome.killed & ~killed or (outcome.filled and not filled)):
                found[candidate] = outcome
                killed |= outcome.killed
                filled = filled or outcome.filled
            else:
                self._file(candidate).unlink()
        return found

    def _try(
        self,
        sandbox: Sandbox,
        candidate: int,
        focus: Sequence[GoldFacts],
        how: Style,
        rng: random.Random,
        targets: Mapping[int, Target],
    ) -> dict[int, Outcome]:
        instance = self._file(candidate)
        write_instance(self.source, make_rows(self.source, focus, how, rng), instance)
        twin = instance.with_suffix(".twin")
        try:
            write_twin(instance, twin, rng)
            return on_candidate(sandbox, instance, twin, targets)
        finally:
            twin.unlink(missing_ok=True)

    def _rng(self, *parts: object) -> random.Random:
        return random.Random(f"{self.seed} {self.db_id} {parts}")

    def _file(self, candidate: int) -> Path:
        return self.folder / f"instance-{candidate:04}.sqlite"

"""The replicas of one database: which is asked, what happens when one fails, and that all have the same content.

A replica that fails rests, each time in a row for longer, while the others do its work; it is tried again when its
rest is over, or at once when no other is left. Statements get a `Fault` only when every replica has failed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from spftsql.config import SandboxConfig
from spftsql.databases.places import Place, Source, address_of, content_of
from spftsql.errors import Fault
from spftsql.sandbox.location import Engine, Location, locate
from spftsql.sandbox.result import Execution, Granted
from spftsql.sandbox.runner import state_of
from spftsql.verification.node_cache import NodeCache

T = TypeVar("T")

_FIRST_REST_S = 1.0
_LONGEST_REST_S = 30.0
_REST_PER_S = 10.0  # of rest for every second that was lost, so that a silent server costs little


class Executor(Protocol):
    """What executes statements on a database: `spftsql.sandbox.execute.Sandbox`, or a stand-in."""

    def execute(
        self, database: Place, statements: Sequence[str], max_rows: int | None = None, granted: Granted | None = None
    ) -> list[Execution]:
        """The outcomes in the same order, of statements that may read what is `granted` (None: all); raises `Fault`."""
        ...

    def plan(self, database: Place, sql: str, granted: Granted | None = None) -> Execution:
        """How the statement would be executed; raises as `execute`."""
        ...

    def close(self) -> None:
        """Ends what it has started."""
        ...


ExecutorFactory = Callable[[SandboxConfig], Executor]


@dataclass
class Replica:
    """One replica as its users know it. Times are seconds of the clock of `Replicas`."""

    location: Location
    faults: int = 0
    failures: int = 0  # in a row
    rests_until: float = 0.0
    checked: tuple[int, ...] | None = None  # the file's state when its content was looked at


class Replicas:
    """The replicas of one database, as one worker uses them. May be shared between threads."""

    def __init__(
        self,
        source: Source,
        index: int = 0,
        node_cache: NodeCache | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Workers of different `index` prefer different replicas. Nothing is opened yet."""
        self._replicas = [Replica(locate(address)) for address in source.addresses]
        start = index % len(self._replicas)
        self._replicas = self._replicas[start:] + self._replicas[:start]
        self._content, self._node_cache, self._clock = source.content, node_cache, clock
        self._lock = threading.Lock()

    def identity(self, executor: Executor) -> tuple[str, bool] | None:
        """What names the content in keys of results, and whether it means the same to other processes.

        None when results must not be kept: where a server cannot tell, and while no replica is there.
        """
        if not self.is_file:
            return self._server_identity(executor)
        if self._content is not None:
            return self._content, True
        if len(self._replicas) > 1:
            return None
        location = self._replicas[0].location
        try:
            return f"{location.address} {state_of(location)}", False
        except Fault:
            return None

    def _server_identity(self, executor: Executor) -> tuple[str, bool] | None:
        ask: Callable[[Place], str] | None = getattr(executor, "state", None)
        if ask is None:
            return None
        for replica in self._turn():
            started = self._clock()
            try:
                state = ask(address_of(replica.location))
            except Fault:
                self._failed(replica, started)
            else:
                # The address says who asks, which may decide what is seen.
                return (f"{replica.location} {state}", False) if state else None
        return None

    @property
    def is_file(self) -> bool:
        """Whether the database is a file, not on a server."""
        return self._replicas[0].location.file is not None

    @property
    def faults(self) -> int:
        """How often a replica has failed."""
        return sum(replica.faults for replica in self._replicas)

    @property
    def engine(self) -> Engine:
        """The engine of them all."""
        return self._replicas[0].location.engine

    def execute(
        self,
        executor: Executor,
        statements: Sequence[str],
        max_rows: int | None = None,
        granted: Granted | None = None,
    ) -> list[Execution]:
        """The outcomes of the statements, all by the same replica: the first in turn that does not fail.

        Raises `Fault` when every replica has failed.
        """
        return self._first(lambda place: executor.execute(place, statements, max_rows, granted))

    def plan(self, executor: Executor, sql: str, granted: Granted | None = None) -> Execution:
        """How the statement would be executed, by one of them; raises as `execute`."""
        return self._first(lambda place: executor.plan(place, sql, granted))

    def _first(self, ask: Callable[[Place], T]) -> T:
        """What the first replica in turn that does not fail answers."""
        reasons = []
        for replica in self._turn():
            started = self._clock()
            try:
                answer = self._ask(replica, ask)
            except Fault as fault:
                self._failed(replica, started)
                reasons.append(str(fault))
            else:
                replica.failures, replica.rests_until = 0, 0.0
                return answer
        many = f"all {len(reasons)} replicas failed: " if len(reasons) > 1 else ""
        raise Fault(many + "; ".join(reasons))

    def states(self) -> dict[str, dict[str, object]]:
        """Of each replica by its address: whether it is `up`, and its `faults` so far."""
        now = self._clock()
        return {
            str(replica.location): {"up": replica.rests_until <= now, "faults": replica.faults}
            for replica in self._replicas
        }

    def _turn(self) -> list[Replica]:
        """Those that do not rest, the preferred one first; then the others, the one that rests shortest first."""
        now = self._clock()
        return sorted(self._replicas, key=lambda replica: max(replica.rests_until - now, 0.0))

    def _failed(self, replica: Replica, started: float) -> None:
        with self._lock:
            now = self._clock()
            replica.faults += 1
            replica.failures += 1
            rest = min(_FIRST_REST_S * 2.0 ** (replica.failures - 1), _LONGEST_REST_S)
            replica.rests_until = now + max(rest, _REST_PER_S * (now - started))

    def _ask(self, replica: Replica, ask: Callable[[Place], T]) -> T:
        location, state = self._ready(replica)
        answer = ask(address_of(location))
        if state != state_of(location):
            replica.checked = None
            raise Fault(f"{location} changed while statements were executed on it")
        return answer

    def _ready(self, replica: Replica) -> tuple[Location, tuple[int, ...]]:
        """What is opened for this replica, and its state; raises `Fault` when it is not the content it should be."""
        location = replica.location
        if location.file is None:
            return location, ()
        if self._node_cache is not None and self._content is not None:
            copy = self._node_cache.copy_of(location.file, self._content)
            if copy is not None:
                location = Location(location.engine, str(copy))
                return location, state_of(location)
        state = state_of(location)
        if replica.checked != state:
            self._check(location)
            replica.checked = state
        return location, state

    def _check(self, location: Location) -> None:
        """Raises `Fault` when the file's content is not that of the database."""
        if self._content is None and len(self._replicas) == 1:
            return
        assert location.file is not None
        content = content_of(location.file)
        with self._lock:
            if self._content is None:
                self._content = content
        if content != self._content:
            raise Fault(f"{location} is not what it was: its content changed under the run, or differs from the others")

"""`Sandbox`: executes batches of untrusted statements in child processes that it replaces when it must."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Self

from spftsql.config import SandboxConfig
from spftsql.errors import Fault
from spftsql.sandbox.folders import Folders
from spftsql.sandbox.location import Engine, Location, locate
from spftsql.sandbox.process import ChildProcess, Ending
from spftsql.sandbox.result import Execution, Granted, Limits
from spftsql.sandbox.runner import state_of

_CRASHES = 2  # a statement that brings down so many fresh children by itself is an error
_OPEN_SECONDS = 30.0  # for a child to take a batch and open its database
_LOSSES = 3  # children lost from outside, under one statement, before it is a fault


class Sandbox:
    """One persistent child process per engine, with the limits of `config`.

    A context manager; threads that share it take turns. A child is started by the first batch for its engine and kept.
    Nothing of the statements runs in this process.
    """

    def __init__(self, config: SandboxConfig, databases: Iterable[str | Path] = ()) -> None:
        """`databases` will be asked for: the first child may read their folders, and need not be replaced for them."""
        self._limits = Limits(**config.model_dump())
        self._children: dict[Engine, ChildProcess] = {}
        self._folders = Folders()
        self._folders.expect(file for file in (locate(database).file for database in databases) if file)
        self._latest: ChildProcess | None = None
        self._lock = threading.Lock()
        self._starters: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The process id of the child that was used last, when it lives."""
        return self._latest.pid if self._latest else None

    def start(self, engine: Engine) -> None:
        """Begins to start the child for an engine, and returns; whatever goes wrong is said by its first batch."""
        starter = threading.Thread(target=self._start, args=(engine,), daemon=True)
        self._starters.append(starter)
        starter.start()

    def _start(self, engine: Engine) -> None:
        with self._lock, contextlib.suppress(Fault):
            if engine not in self._children:
                readable = None if engine == "postgresql" else self._folders.known
                self._children[engine] = ChildProcess(engine, self._limits, readable)

    def execute(
        self,
        database: str | Path,
        statements: Sequence[str],
        max_rows: int | None = None,
        granted: Granted | None = None,
    ) -> list[Execution]:
        """Executes the statements one after another and returns their outcomes in the same order.

        `database` is a file or a URL, as `locate` reads it. `max_rows` (default: the configured limit) is where a
        result is cut. With `granted` the engine itself refuses to read anything else. A statement that brings its child
        down by itself twice, each time in a fresh child, is an `error` with reason `killed`.

        Raises:
            UserError: the URL is of an engine that is not known.
            Fault: the database cannot be read, children cannot be started or are killed from outside again and again.
        """
        return self._outcomes(database, statements, max_rows, granted)

    def plan(self, database: str | Path, sql: str, granted: Granted | None = None) -> Execution:
        """How the engine would run the statement (see `query_plan`), under the same policy. Raises as `execute`."""
        return self._outcomes(database, [sql], None, granted, plan=True)[0]

    def _outcomes(
        self,
        database: str | Path,
        statements: Sequence[str],
        max_rows: int | None,
        granted: Granted | None,
        plan: bool = False,
    ) -> list[Execution]:
        limit = self._limits.max_rows if max_rows is None else min(max_rows, self._limits.max_rows)
        location = locate(database)
        done: list[Execution] = []
        with self._lock:
            crashes = losses = 0
            while len(done) < len(statements):
                before = len(done)
                fresh = location.engine not in self._children
                ending, engine = self._drive(location, statements[before:], limit, granted, done, plan)
                if ending is None:
                    break
                if len(done) > before:
                    crashes, losses, fresh = 0, 0, False
                # The statement after the last answer is the one under which the child ended. What others left in a
                # child that had executed them may have brought it down: that says nothing about this statement.
                crashes += ending == "itself" and fresh
                losses += ending == "outside"
                if losses == _LOSSES:
                    raise Fault(f"the sandbox process was killed from outside {_LOSSES} times")
                if ending in ("late", "cpu"):
                    seconds = self._limits.hard_seconds
                    reason = f"longer than {seconds:g} s, killed"
                    done.append(Execution("timeout", reason, (), [], seconds * 1000, engine))
                elif crashes == _CRASHES:
                    done.append(Execution("error", "killed", (), [], 0.0, engine))
                else:
                    continue
                crashes = losses = 0
        return done

    def state(self, database: str | Path) -> str:
        """Names the content of a server's database as it is now (see `ServerRunner.state`); "" where it is not known.

        Raises `UserError` and `Fault` as `execute`.
        """
        location = locate(database)
        if location.file is not None:
            return str(state_of(location))
        with self._lock:
            child = self._child(location)
            try:
                child.send(location.address, (), 0, time.monotonic() + _OPEN_SECONDS)
                for _ in ("engine", "state"):
                    text = self._opened(child.receive(time.monotonic() + _OPEN_SECONDS))
                return text
            except (TimeoutError, EOFError, ValueError, TypeError):
                self._discard(location.engine)
                raise Fault(f"{location}: its sandbox process does not answer") from None

    def _drive(
        self,
        location: Location,
        statements: Sequence[str],
        max_rows: int,
        granted: Granted | None,
        done: list[Execution],
        plan: bool,
    ) -> tuple[Ending | Literal["late"] | None, str]:
        """Appends outcomes until the batch or the child ends; how the child ended (None when it lives), and what ran.

        A child that ends before it has opened the database counts as ended from outside: no statement had begun.
        """
        child = self._child(location)
        engine = ""
        try:
            child.send(location.address, statements, max_rows, time.monotonic() + _OPEN_SECONDS, granted, plan)
            engine = self._opened(child.receive(time.monotonic() + _OPEN_SECONDS))
            for _ in statements:
                answer = child.receive(time.monotonic() + self._limits.hard_seconds)
                if answer[0] == "fault":
                    raise Fault(answer[1])
                status, reason, columns, rows, elapsed = answer
                done.append(Execution(status, reason, columns, list(rows), elapsed, engine))
            return None, engine
        except TimeoutError:
            ending: Ending | Literal["late"] = "late" if engine else "outside"
        except EOFError:
            ending = child.ending() if engine else "outside"
        except (ValueError, TypeError):  # not a message of ours
            ending = "itself"
        self._discard(location.engine)
        return ending, engine

    def _child(self, location: Location) -> ChildProcess:
        engine, file = location.engine, location.file
        folder = self._folders.of(file) if file else None
        if engine in self._children and not self._children[engine].may_read(folder):
            self._discard(engine)
        if engine not in self._children:
            readable = self._folders.known if file else None
            self._children[engine] = ChildProcess(engine, self._limits, readable)
        self._latest = self._children[engine]
        return self._latest

    @staticmethod
    def _opened(answer: tuple[str, str]) -> str:
        kind, text = answer
        if kind == "fault":
            raise Fault(text)
        return text

    def _discard(self, engine: Engine) -> None:
        child = self._children.pop(engine, None)
        if child:
            child.kill()
            self._latest = None if child is self._latest else self._latest

    def close(self) -> None:
        """Ends the children; a later `execute` starts others."""
        while self._starters:
            self._starters.pop().join()
        with self._lock:
            for engine in list(self._children):
                self._discard(engine)

"""`Sandbox`: executes batches of untrusted statements in a child process that it replaces when it must."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from spftsql.config import SandboxConfig
from spftsql.errors import Fault
from spftsql.sandbox.process import ChildProcess
from spftsql.sandbox.result import Execution, Limits, RunStatus

_CRASHES = 2  # a statement that brings down so many children by itself is an error
_LOSSES = 3  # children lost from outside, under one statement, before it is a fault


class Sandbox:
    """One persistent child process with the limits of `config`. A context manager; safe to share between threads.

    The child is started by the first batch and kept. Nothing of the statements runs in this process.
    """

    def __init__(self, config: SandboxConfig) -> None:
        self._limits = Limits(**config.model_dump())
        self._child: ChildProcess | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The process id of the child, when there is one."""
        return self._child.pid if self._child else None

    def execute(self, database: Path, statements: Sequence[str], max_rows: int | None = None) -> list[Execution]:
        """Executes the statements one after another and returns their outcomes in the same order.

        `max_rows` (default: the configured limit) is where a result is cut. A statement that brings its child down by
        itself twice, each time in a fresh child, is an `error` with reason `killed`.

        Raises:
            Fault: the database cannot be read, children cannot be started or are killed from outside again and again.
        """
        limit = self._limits.max_rows if max_rows is None else min(max_rows, self._limits.max_rows)
        database = database.absolute()
        done: list[Execution] = []
        with self._lock:
            crashes = losses = 0
            while len(done) < len(statements):
                before = len(done)
                ending = self._drive(database, statements[before:], limit, done)
                if ending is None:
                    break
                if len(done) > before:
                    crashes = losses = 0
                # The statement after the last answer is the one under which the child ended.
                crashes += ending == "itself"
                losses += ending == "outside"
                if losses == _LOSSES:
                    raise Fault(f"the sandbox process was killed from outside {_LOSSES} times")
                if ending in ("late", "cpu"):
                    seconds = self._limits.hard_seconds
                    done.append(self._without_child("timeout", f"longer than {seconds:g} s, killed", seconds))
                elif crashes == _CRASHES:
                    done.append(self._without_child("error", "killed", 0.0))
                else:
                    continue
                crashes = losses = 0
        return done

    def _drive(self, database: Path, statements: Sequence[str], max_rows: int, done: list[Execution]) -> str | None:
        """Appends outcomes until the batch or the child ends; says how the child ended, None when it lives."""
        if self._child is None:
            self._child = ChildProcess(self._limits)
            self._engine = self._child.engine
        child = self._child
        try:
            child.send(database, statements, max_rows, self._deadline())
            for _ in statements:
                status, reason, columns, rows, elapsed = child.receive(self._deadline())
                if status == "fault":
                    # The rest of the batch is still being answered: a fresh child is simpler than draining it.
                    self._discard()
                    raise Fault(reason)
                done.append(Execution(status, reason, columns, list(rows), elapsed, child.engine))
            return None
        except TimeoutError:
            ending = "late"
        except EOFError:
            ending = child.ending()
        except (ValueError, TypeError):  # not a message of ours
            ending = "itself"
        self._discard()
        return ending

    def _deadline(self) -> float:
        return time.monotonic() + self._limits.hard_seconds

    def _without_child(self, status: RunStatus, reason: str, seconds: float) -> Execution:
        return Execution(status, reason, (), [], seconds * 1000, self._engine)

    def _discard(self) -> None:
        if self._child:
            self._child.kill()
            self._child = None

    def close(self) -> None:
        """Ends the child; a later `execute` starts another."""
        with self._lock:
            self._discard()

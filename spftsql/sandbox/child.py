"""The child process: `python -m spftsql.sandbox.child FD PARENT LIMITS`, which alone executes untrusted SQL.

It first gives up what it does not need (memory, CPU time, files, core dumps), asks the kernel to die with its parent,
and then answers batches of statements until its end of the socket is closed.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import os
import resource
import signal
import socket
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from spftsql.errors import Fault
from spftsql.sandbox.channel import Channel
from spftsql.sandbox.result import Limits
from spftsql.sandbox.sqlite import ENGINE, SqliteRunner, limit_heap

_PR_SET_PDEATHSIG = 1
_OPEN_FILES = 64
_OPEN_DATABASES = 16
_MAX_REQUEST = 1 << 30


def main() -> None:
    """Serves the parent until it closes the socket."""
    descriptor, parent, limits = int(sys.argv[1]), int(sys.argv[2]), Limits(**json.loads(sys.argv[3]))
    channel = Channel(socket.socket(fileno=descriptor), _MAX_REQUEST)
    _fence(parent, limits)
    channel.send(ENGINE)
    runners = _Runners(limits)
    while True:
        try:
            database, statements, max_rows = channel.receive()
        except EOFError:
            return
        for sql in statements:
            _bound_cpu_time(limits)
            channel.send(_answer(runners, database, sql, max_rows))


def _answer(runners: _Runners, database: str, sql: str, max_rows: int) -> tuple[Any, ...]:
    try:
        run = runners.of(Path(database)).execute(sql, max_rows)
        return run.status, run.reason, run.columns, run.rows, run.elapsed_ms
    except Fault as fault:
        return "fault", str(fault), (), (), 0.0


class _Runners:
    """Open databases, the least recently used closed first, and reopened when their file is another."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._open: OrderedDict[Path, tuple[tuple[int, ...], SqliteRunner]] = OrderedDict()

    def of(self, database: Path) -> SqliteRunner:
        try:
            now = database.stat()
        except OSError as error:
            raise Fault(f"{database} cannot be opened: {error.strerror}") from None
        identity = (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns)
        known = self._open.get(database)
        if known and known[0] == identity:
            self._open.move_to_end(database)
            return known[1]
        if known or len(self._open) >= _OPEN_DATABASES:
            _, old = self._open.pop(database) if known else self._open.popitem(last=False)[1]
            old.close()
        runner = SqliteRunner(database, self._limits)
        self._open[database] = identity, runner
        return runner


def _fence(parent: int, limits: Limits) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL)) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        os._exit(0)  # the parent died before the kernel was asked
    os.rmdir(os.getcwd())  # in a folder that is gone no file can be made, and none is left behind
    for limited, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_AS, limits.memory_mb * 2**20),
    ):
        resource.setrlimit(limited, (value, value))
    limit_heap(limits)
    gc.freeze()


def _bound_cpu_time(limits: Limits) -> None:
    """For the case that the parent, which watches the clock on the wall, is itself stopped."""
    seconds = math.ceil(time.process_time() + limits.hard_seconds) + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, hard))


if __name__ == "__main__":
    main()

"""The child process: `python -m spftsql.sandbox.child ENGINE FD PARENT LIMITS`, which alone executes untrusted SQL.

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
from typing import cast

from spftsql.errors import Fault
from spftsql.sandbox.channel import Channel
from spftsql.sandbox.location import Engine, Location
from spftsql.sandbox.result import Limits
from spftsql.sandbox.runner import EngineModule, Runner, engine_module, state_of

_PR_SET_PDEATHSIG = 1
_OPEN_FILES = 64
_OPEN_DATABASES = 16
_MAX_REQUEST = 1 << 30


def main() -> None:
    """Serves the parent until it closes the socket."""
    engine, descriptor, parent = cast(Engine, sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    limits = Limits(**json.loads(sys.argv[4]))
    channel = Channel(socket.socket(fileno=descriptor), _MAX_REQUEST)
    module = engine_module(engine)
    module.limit_process(limits)
    _fence(parent, limits)
    runners = _Runners(engine, module, limits)
    channel.send("ready")
    while True:
        try:
            address, statements, max_rows = channel.receive()
        except EOFError:
            return
        runners.answer(channel, address, statements, max_rows)


class _Runners:
    """Open databases, the least recently used closed first, and reopened when their file is another."""

    def __init__(self, engine: Engine, module: EngineModule, limits: Limits) -> None:
        self._engine, self._module, self._limits = engine, module, limits
        self._open: OrderedDict[str, tuple[tuple[int, ...], Runner]] = OrderedDict()

    def answer(self, channel: Channel, address: str, statements: tuple[str, ...], max_rows: int) -> None:
        """Sends the engine's name, then the outcome of each statement; a fault ends the batch."""
        try:
            _bound_cpu_time(self._limits)
            runner = self._of(address)
            channel.send(("engine", runner.engine))
            for sql in statements:
                _bound_cpu_time(self._limits)
                run = runner.execute(sql, max_rows)
                channel.send((run.status, run.reason, run.columns, run.rows, run.elapsed_ms))
        except Fault as fault:
            if address in self._open:  # whatever is wrong with it, the next batch opens it anew
                self._open.pop(address)[1].close()
            channel.send(("fault", str(fault)))

    def _of(self, address: str) -> Runner:
        state = state_of(Location(self._engine, address))
        known = self._open.get(address)
        if known and known[0] == state:
            self._open.move_to_end(address)
            return known[1]
        if known or len(self._open) >= _OPEN_DATABASES:
            _, old = self._open.pop(address) if known else self._open.popitem(last=False)[1]
            old.close()
        runner = self._module.open_database(address, self._limits)
        self._open[address] = state, runner
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
    gc.freeze()


def _bound_cpu_time(limits: Limits) -> None:
    """For the case that the parent, which watches the clock on the wall, is itself stopped."""
    seconds = math.ceil(time.process_time() + limits.hard_seconds) + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, hard))


if __name__ == "__main__":
    main()

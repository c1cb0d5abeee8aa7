"""The child process `python -m spftsql.sandbox.child ENGINE FD PARENT LIMITS PATHS` alone executes untrusted SQL.

It first gives up what it does not need (see `fence`), and then answers batches of statements until its end of the
socket is closed.
"""

from __future__ import annotations

import json
import socket
import sys
from collections import OrderedDict
from typing import cast

from spftsql.errors import Fault
from spftsql.sandbox.channel import Channel
from spftsql.sandbox.fence import bound_cpu_time, raise_fence
from spftsql.sandbox.location import Engine, Location
from spftsql.sandbox.result import Granted, Limits
from spftsql.sandbox.runner import OPEN_DATABASES, EngineModule, Runner, ServerRunner, engine_module, state_of

_MAX_REQUEST = 1 << 30


def main() -> None:
    """Serves the parent until it closes the socket."""
    engine, descriptor, parent = cast(Engine, sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    limits, readable = Limits(**json.loads(sys.argv[4])), json.loads(sys.argv[5])
    channel = Channel(socket.socket(fileno=descriptor), _MAX_REQUEST)
    module = engine_module(engine)
    module.limit_process(limits)
    layers = raise_fence(parent, limits, readable)
    runners = _Runners(engine, module, limits)
    channel.send(layers)
    while True:
        try:
            address, statements, max_rows, granted, plan = channel.receive()
        except EOFError:
            return
        runners.answer(channel, address, statements, max_rows, granted, plan)


class _Runners:
    """Open databases, the least recently used closed first, and reopened when their file is another."""

    def __init__(self, engine: Engine, module: EngineModule, limits: Limits) -> None:
        self._engine, self._module, self._limits = engine, module, limits
        self._open: OrderedDict[str, tuple[tuple[int, ...], Runner]] = OrderedDict()

    def answer(
        self,
        channel: Channel,
        address: str,
        statements: tuple[str, ...],
        max_rows: int,
        granted: Granted | None,
        plan: bool,
    ) -> None:
        """Sends the engine's name, then the outcome of each statement (without any, the state); a fault ends it."""
        try:
            bound_cpu_time(self._limits)
            runner = self._of(address)
            channel.send(("engine", runner.engine))
            if not statements:
                channel.send(("state", runner.state() if isinstance(runner, ServerRunner) else ""))
            for sql in statements:
                bound_cpu_time(self._limits)
                run = runner.plan(sql, granted) if plan else runner.execute(sql, max_rows, granted)
                channel.send((run.status, run.reason, run.columns, run.rows, run.elapsed_ms))
        except MemoryError:
            raise  # the end of this process, which the parent counts
        except Exception as error:
            # Any other than a `Fault` is a mistake of ours, which must not look like one of the statement.
            message = str(error) if isinstance(error, Fault) else f"{type(error).__name__} in the sandbox: {error}"
            if address in self._open:  # whatever is wrong with it, the next batch opens it anew
                self._open.pop(address)[1].close()
            channel.send(("fault", message))

    def _of(self, address: str) -> Runner:
        state = state_of(Location(self._engine, address))
        known = self._open.get(address)
        if known and known[0] == state:
            self._open.move_to_end(address)
            return known[1]
        if known or len(self._open) >= OPEN_DATABASES[self._engine]:
            _, old = self._open.pop(address) if known else self._open.popitem(last=False)[1]
            old.close()
        runner = self._module.open_database(address, self._limits)
        self._open[address] = state, runner
        return runner


if __name__ == "__main__":
    main()

"""The parent's side of one child process: start it, talk to it with deadlines, kill it, say how it ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from spftsql.errors import Fault
from spftsql.sandbox.channel import Channel
from spftsql.sandbox.folders import Folder
from spftsql.sandbox.location import Engine
from spftsql.sandbox.result import Granted, Limits

Ending = Literal["itself", "outside", "cpu"]

_COMMAND = (sys.executable, "-P", "-m", "spftsql.sandbox.child")
_START_SECONDS = 60.0
_ROOT = Path(__file__).resolve().parents[2]
_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")
_FOR_SERVERS = ("HOME", "PG", "KRB5")  # beginnings of names: where libpq finds logins and certificates
_SENT_BY_OTHERS = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
# The kernel's "die with your parent" means the thread that made the child, so one thread of ours makes them all.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sandbox-spawner")


class ChildProcess:
    """A running child. The constructor raises `Fault` when it does not come up.

    `readable` are the folders that it may read where the kernel can hold it to them; None: any file.
    """

    def __init__(self, engine: Engine, limits: Limits, readable: Iterable[Folder] | None = ()) -> None:
        self._readable = None if readable is None else frozenset(readable)
        paths = None if self._readable is None else sorted({folder.path for folder in self._readable})
        ours, theirs = socket.socketpair()
        # Rows travel as MessagePack, at most 9 bytes per number and 5 more than its length (in UTF-8) per text.
        self._channel = Channel(ours, max_frame=(1 << 20) + 16 * limits.max_bytes)
        with theirs, tempfile.TemporaryFile() as errors:
            self._process = _SPAWNER.submit(_spawn, engine, limits, paths, theirs.fileno(), errors.fileno()).result()
            theirs.close()  # so that the end of the child is the end of the stream
            try:
                # For each layer that depends on the kernel why it is not there, or an empty text.
                self.layers: dict[str, str] = self._channel.receive(time.monotonic() + _START_SECONDS)
            except (EOFError, TimeoutError):
                self.kill()
                errors.seek(0)
                lines = errors.read().decode(errors="replace").strip().splitlines()
                message = lines[-1] if lines else "no message"
                raise Fault(f"the sandbox process does not start: {message}") from None

    def may_read(self, folder: Folder | None) -> bool:
        """Whether it can open files in `folder`, as far as the kernel holds it to what it was given."""
        return folder is None or self._readable is None or folder in self._readable or bool(self.layers["Landlock"])

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def send(
        self,
        address: str,
        statements: Sequence[str],
        max_rows: int,
        deadline: float,
        granted: Granted | None = None,
        plan: bool = False,
    ) -> None:
        """Hands over a batch, to be executed or (`plan`) to be explained.

        Raises `EOFError` when the child is gone, or does not take it by the deadline.
        """
        try:
            self._channel.send((address, list(statements), max_rows, granted, plan), deadline)
        except OSError:  # also TimeoutError: an idle child that does not read was stopped by someone
            self._process.kill()
            raise EOFError("the child is gone") from None

    def receive(self, deadline: float) -> Any:
        """The next message; `TimeoutError` past the deadline, `EOFError` when the child is gone."""
        return self._channel.receive(deadline)

    def ending(self) -> Ending:
        """How a child that is gone ended: by itself (crash, memory), by its CPU limit, or by someone's signal."""
        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self.kill()  # it closed its socket or spoke nonsense, and lives
            return "itself"
        if -code in _SENT_BY_OTHERS:
            return "outside"
        return "cpu" if -code == signal.SIGXCPU else "itself"

    def kill(self) -> None:
        """Ends the child at once, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._channel.close()


def _spawn(
    engine: Engine, limits: Limits, readable: list[str] | None, descriptor: int, stderr: int
) -> subprocess.Popen[bytes]:
    arguments = [engine, str(descriptor), str(os.getpid()), json.dumps(asdict(limits)), json.dumps(readable)]
    environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    if engine == "postgresql":
        environment |= {name: value for name, value in os.environ.items() if name.startswith(_FOR_SERVERS)}
    environment |= {"PYTHONPATH": str(_ROOT), "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment["DUCKDB_JE_MALLOC_CONF"] = "retain:false"  # what it frees must not count against the address space
    return subprocess.Popen(
        [*_COMMAND, *arguments],
        pass_fds=[descriptor],
        cwd=tempfile.mkdtemp(prefix="spftsql-sandbox-"),  # the child removes it under its own feet
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        start_new_session=True,  # Ctrl-C at a terminal is for the parent
    )

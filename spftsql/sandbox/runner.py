"""What the child asks of an engine: one runner per open database, in a module of its own for each engine."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Protocol, runtime_checkable

from spftsql.errors import Fault
from spftsql.sandbox.location import Engine, Location
from spftsql.sandbox.result import Execution, Granted, Limits

_MODULES: dict[Engine, str] = {
    "sqlite": "spftsql.sandbox.sqlite",
    "duckdb": "spftsql.sandbox.duckdb",
    "postgresql": "spftsql.sandbox.postgresql.runner",
}
# Databases that a child has open at once. Of memory for a statement, each costs nothing in SQLite and 4 MB in DuckDB.
OPEN_DATABASES: dict[Engine, int] = {"sqlite": 16, "duckdb": 4, "postgresql": 16}


class Runner(Protocol):
    """An open database. `engine` is the name and version of what executes, such as `sqlite 3.50.4`."""

    engine: str

    def execute(self, sql: str, max_rows: int, granted: Granted | None = None) -> Execution:
        """Runs one statement, which may read what is `granted` (None: all of the database).

        Raises `Fault` when the database, not the statement, is at fault.
        """
        ...

    def plan(self, sql: str, granted: Granted | None = None) -> Execution:
        """How the engine would run a statement that `execute` would run: its own rows (see `query_plan`). Raises alike.

        What `execute` refuses is refused here in the same words.
        """
        ...

    def close(self) -> None:
        """Closes it."""
        ...


@runtime_checkable
class ServerRunner(Runner, Protocol):
    """A database on a server, whose content can change while it is open."""

    def state(self) -> str:
        """Names the content as it is now: equal texts mean equal content. "" where it cannot be known.

        Asked for before a statement runs, it names content that the result may be kept under: should the content
        change in between, nothing will be asked for under the old name again.
        """
        ...


class EngineModule(Protocol):
    """What each of these modules offers beside its runner."""

    def limit_process(self, limits: Limits) -> None:
        """Called once in the child, before its fence goes up: what the engine limits for the whole process."""
        ...

    def open_database(self, address: str, limits: Limits) -> Runner:
        """Opens a file's path or a server's URL; raises `Fault` when it cannot be opened."""
        ...


def engine_module(engine: Engine) -> EngineModule:
    """Imports the module of an engine, and with it the engine's own library."""
    module: EngineModule = import_module(_MODULES[engine])
    return module


def state_of(location: Location) -> tuple[int, ...]:
    """Changes when a database's file does; empty for a server. Raises `Fault` when the file is not there."""
    file: Path | None = location.file
    if file is None:
        return ()
    try:
        now = file.stat()
    except OSError as error:
        raise Fault(f"{location} cannot be opened: {error.strerror}") from None
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns

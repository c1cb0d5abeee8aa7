"""A sandbox child that leaves out some guards: `python -m tests.unguarded NAMES …` is that child.

Only tests can do this: nothing that a user can set reaches the `without` of the runner and of the fence.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Set
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path

from spftsql.sandbox import child, fence, process

_RUNNERS = {
    "sqlite": ("spftsql.sandbox.sqlite", "SqliteRunner"),
    "duckdb": ("spftsql.sandbox.duckdb", "DuckdbRunner"),
}


@contextmanager
def guards_off(guards: Set[str]) -> Iterator[None]:
    """Inside, new children for SQLite and DuckDB leave out these guards (of `GUARDS` of the engine and of `fence`)."""
    engines = (import_module(module).GUARDS.keys() for module, _ in _RUNNERS.values())
    unknown = guards - fence.GUARDS.keys() - set().union(*engines)
    assert not unknown, unknown
    usual = process._COMMAND
    process._COMMAND = (sys.executable, "-P", "-m", "tests.unguarded", json.dumps(sorted(guards)))
    try:
        yield
    finally:
        process._COMMAND = usual


def main() -> None:
    guards = frozenset(json.loads(sys.argv.pop(1)))
    child.raise_fence = partial(fence.raise_fence, without=guards)
    place, name = _RUNNERS[sys.argv[1]]
    module = import_module(place)
    module.open_database = lambda address, limits: getattr(module, name)(Path(address), limits, guards)
    if "heap limit" in guards:
        module.limit_process = lambda limits: None
    if "CPU" in guards:
        child.bound_cpu_time = lambda limits: None
    child.main()


if __name__ == "__main__":
    main()

"""Showing that a guard of the sandbox is needed: what comes of statements with it and without it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spftsql.config import SandboxConfig
from spftsql.errors import Fault
from spftsql.sandbox.execute import Sandbox
from tests.hostile import contents
from tests.unguarded import guards_off


@dataclass(frozen=True)
class Control:
    """What comes of `statements`, run one after another on a copy of a database, as patterns of what `attempt` says.

    With every guard on (`stopped`), with this one off (`alone`), and, where other guards stop the statements too, with
    those (`behind`) off: this one still on (`by_itself`), and off as well (`through`). `setup` says how the database is
    prepared, and `config` is None for the usual one.
    """

    guard: str
    statements: tuple[str, ...]
    stopped: str
    alone: str
    behind: frozenset[str] = frozenset()
    by_itself: str = ""
    through: str = ""
    config: SandboxConfig | None = None
    setup: str = ""


def check(
    control: Control, template: Path, folder: Path, config: SandboxConfig, prepare: Callable[[str, Path], None]
) -> None:
    """Asserts that the statements come to what the control says; `template` holds the database, `folder` is empty."""
    alone = frozenset({control.guard})
    trials = {"stopped": frozenset[str](), "alone": alone}
    if control.behind:
        trials |= {"by_itself": control.behind, "through": control.behind | alone}
    for name, off in trials.items():
        outcome = attempt(control, off, template, folder, config, prepare)
        assert re.search(getattr(control, name), outcome), f"{name} without {sorted(off)}: {outcome}"


def attempt(
    control: Control,
    off: frozenset[str],
    template: Path,
    folder: Path,
    config: SandboxConfig,
    prepare: Callable[[str, Path], None],
) -> str:
    """The outcomes of the statements in one line; ends in what changed in the folder, and WROTE for other files."""
    copy = folder / f"run{len(os.listdir(folder))}"
    shutil.copytree(template, copy)
    database = next(copy.glob("people*"))
    prepare(control.setup, database)
    before = contents(copy)
    said = []
    with guards_off(off), Sandbox(control.config or config) as sandbox:
        for sql in control.statements:
            sql = sql.replace("FOLDER", str(copy)).replace("ELSEWHERE", str(template))
            try:
                (run,) = sandbox.execute(database, [sql])
            except Fault as fault:
                said.append(f"fault {fault}")
            else:
                said.append(f"{run.status} {run.reason or run.rows[:3]}")
        wrote = _written(sandbox.pid) > 1_000_000
    changed = sorted(dict(before.items() ^ contents(copy).items()))
    return "; ".join(said) + (f" CHANGED {' '.join(changed)}" if changed else "") + (" WROTE" if wrote else "")


def _written(pid: int | None) -> int:
    """Bytes that a process has written to files."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError:
        return 0
    return int(next(line.split()[1] for line in lines if line.startswith("wchar:")))

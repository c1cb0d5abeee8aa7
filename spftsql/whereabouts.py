"""The machines on which the workers of a stage have started: an empty file for each, in the folder that they work in.

These folders are in that of the stage while it is built, and gone when it is.
"""

from __future__ import annotations

import shutil
import socket
import typing
from contextlib import suppress
from pathlib import Path

from spftsql.usage import Who

_FOLDER = "whereabouts"
_KINDS: tuple[Who, ...] = typing.get_args(Who)


def say_where(folder: Path, who: Who, host: str | None = None) -> None:
    """Notes that a worker has started on this machine, or on `host`; it works all the same where that fails."""
    with suppress(OSError):
        (folder / _FOLDER).mkdir(parents=True, exist_ok=True)
        (folder / _FOLDER / f"{who}@{host or socket.gethostname()}").touch()


def forget_where(folder: Path) -> None:
    """Takes back what was noted in `folder`, before workers start again."""
    shutil.rmtree(folder / _FOLDER, ignore_errors=True)


def whereabouts(stage: Path) -> dict[str, list[str]]:
    """What was noted in the folders of a stage that is being built: machines by the kind of worker."""
    noted = {tuple(file.name.split("@", 1)) for file in stage.glob(f"*/{_FOLDER}/*@?*")}
    found = {who: sorted(host for kind, host in noted if kind == who) for who in _KINDS}
    return {who: hosts for who, hosts in found.items() if hosts}

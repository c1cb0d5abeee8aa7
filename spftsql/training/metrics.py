"""`metrics.jsonl`: one line for every step of every training, each step once, and who reads along."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Values = dict[str, Any]
VALIDATION = "validation"  # the `event` of a line with an accuracy; those of steps have none
_POLL_S = 0.5


def append_metrics(path: Path, values: Values) -> None:
    """Appends one JSON line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


def validation_line(job: str, step: int, steps: int, accuracy: float) -> Values:
    """The line of a validated model."""
    return {"job": job, "step": step, "steps": steps, "event": VALIDATION, "accuracy": accuracy}


def forget_metrics(path: Path, job: str, step: int) -> None:
    """Removes what stands there of the steps of `job` after `step`: a resume does them again.

    Its validations, which it tells again, go too, and a line that a killed process has left unfinished.
    """
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = []
    for line in lines:
        values = _parsed(line)
        if values is not None and not (
            values.get("job") == job and (values.get("step", 0) > step or values.get("event") == VALIDATION)
        ):
            kept.append(line)
    if len(kept) < len(lines):
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(path)


def _parsed(line: str) -> Values | None:
    if not line.endswith("\n"):
        return None
    try:
        values: Values = json.loads(line)
    except ValueError:
        return None
    return values


@contextmanager
def follow_metrics(path: Path, tell: Callable[[Values], None]) -> Iterator[None]:
    """Tells what is appended to the file from now on, each line once, also when lines are removed in between."""
    follower = _Follower(path)
    follower.read()  # what is there already is known
    ended = threading.Event()

    def follow() -> None:
        last = False
        while not last:
            last = ended.wait(_POLL_S)
            for values in follower.read():
                tell(values)

    thread = threading.Thread(target=follow, daemon=True, name="training-metrics")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class _Follower:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None  # its inode: lines are removed by replacing the file
        self._offset = 0
        self._told: set[str] = set()

    def read(self) -> list[Values]:
        """Lines that were not there before."""
        try:
            with self._path.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                known: set[str] = set()
                if inode != self._file:
                    self._file, self._offset, known, self._told = inode, 0, self._told, set()
                file.seek(self._offset)
                lines = file.read().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        new = []
        for line in lines:
            if not line.endswith(b"\n"):
                break
            self._offset += len(line)
            values = _parsed(line.decode())
            if values is not None:
                identity = json.dumps([values.get(key) for key in ("job", "step", "event")])
                self._told.add(identity)
                if identity not in known:
                    new.append(values)
        return new

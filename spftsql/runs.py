"""The run directory: what is done stays done.

A run is a folder of stages. A stage is a folder whose name carries a hash of everything that its content depends on;
it is built under a temporary name and renamed when it is complete, so that a run killed anywhere and started again
skips what is there and builds the rest. Changed inputs give another name, hence another build; nothing is overwritten.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from spftsql import __version__
from spftsql.config import Config
from spftsql.errors import UserError, disk_faults
from spftsql.records import content_hash
from spftsql.run_storage import open_storage


@dataclass(frozen=True)
class Stage:
    """A finished stage: its folder, and the hash of what it was built from."""

    name: str
    key: str
    path: Path


class Run:
    """One run directory, held by one process at a time (a file lock)."""

    def __init__(self, config: Config, shared: Path | None = None) -> None:
        """Opens or creates the directory of `config`; its stages are in the folder `shared` where one is given.

        Raises `UserError` when another process is at work in it.
        """
        self.root = (config.run_dir / config.name).resolve()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run directory {self.root} cannot be made: {error.strerror}") from None
        self._lock = FileLock(self.root / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"run {self.root} is in use by another process; wait for it or set run_dir") from None
        try:
            self._storage = open_storage(config.storage, config.name)
        except BaseException:
            self._lock.release()
            raise
        self.stages = self.root / "stages"
        if shared is not None:
            shared.mkdir(parents=True, exist_ok=True)
            if not self.stages.is_symlink():
                self.stages.symlink_to(os.path.relpath(shared.resolve(), self.root))
            self.stages = shared.resolve()
        if self._storage:
            self._storage.fetch_state(self.root)
        tree = config.model_dump(mode="json", by_alias=True)
        _write_text(self.root / "config.yaml", yaml.safe_dump(tree, sort_keys=False))
        self.metrics = self.root / "metrics.jsonl"
        self._about: dict[str, Any] = {}
        self.event("opened", host=socket.gethostname(), pid=os.getpid(), version=__version__)

    def close(self) -> None:
        """Lets another process in."""
        try:
            if self._storage:
                self._storage.keep_state(self.root)
                self._storage.close()
        finally:
            self._lock.release()

    def stage(self, name: str, inputs: object, build: Callable[[Path], None], *, keep_partial: bool = False) -> Stage:
        """The stage `name` for `inputs` (anything that JSON can say), built by `build(folder)` unless it is there.

        With `keep_partial` a folder that an interrupted build has left is handed to the next one, which resumes in
        it (training); otherwise it is emptied first. Raises `Fault` when the disk is full, upon which what is finished
        stays finished.
        """
        with disk_faults(self.root):
            return self._stage(name, inputs, build, keep_partial)

    def _stage(self, name: str, inputs: object, build: Callable[[Path], None], keep_partial: bool) -> Stage:
        key = content_hash(name, inputs)
        final = self.stages / f"{name}-{key}"
        if final.is_dir() or (self._storage and self._storage.fetch(final)):
            self.event("stage", name=name, key=key, outcome="kept")
            if self._storage:
                self._storage.keep(final)
            return Stage(name, key, final)
        partial = final.with_name(f"{final.name}.partial")
        if partial.exists() and not keep_partial:
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        self.event("stage", name=name, key=key, outcome="started")
        begin = time.monotonic()
        build(partial)
        partial.rename(final)
        self.event("stage", name=name, key=key, outcome="built", seconds=round(time.monotonic() - begin, 3))
        if self._storage:
            self._storage.keep(final)
        return Stage(name, key, final)

    def about(self, **details: Any) -> Run:
        """The same run, whose events all have these `details` from here on: what part of it they are about."""
        other = copy.copy(self)
        other._about = {**self._about, **details}
        return other

    def event(self, kind: str, **details: Any) -> None:
        """Appends one line to `events.jsonl`: what happened, and why."""
        told = {"time": round(time.time(), 3), "event": kind, **self._about, **details}
        line = json.dumps(told, ensure_ascii=False)
        with (self.root / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def write(self, name: str, text: str) -> Path:
        """Writes a result file of the run atomically."""
        _write_text(self.root / name, text)
        return self.root / name


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)

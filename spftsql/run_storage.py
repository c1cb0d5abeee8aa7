"""Finished stages of a run in an object store (s3://, gs://) or another file system, beside the local run directory.

Work happens on local files. A stage that is finished never changes, so it is copied whole, and a marker that lists its
files is written last: a stage without its marker is not there. On another machine the run fetches what it lacks. A
lease, renewed while the run is open, keeps two machines from working on one run. Clocks differ and jump: a lease that
seems to be over is taken only when nobody has renewed it while a machine looked on.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spftsql.errors import Fault, UserError

_LEASE_S = 300.0  # a machine that has not renewed its lease for so long is taken to be gone
_RENEW_S = 60.0
_WATCH_S = 75.0  # a lease that seems to be over is looked at for so long: whoever holds it would renew it
_SETTLE_S = 1.0  # between writing a lease and looking whose it is: object stores have no common lock
_CHUNK = 8 << 20
_STATE = (
    "config.yaml",
    "events.jsonl",
    "metrics.jsonl",
    "result.json",
    "table.md",
    "outcomes.json",
    "quarantine.jsonl",
)


class RunStorage:
    """One run's place in an object store, held by this process until `close`."""

    def __init__(
        self, url: str, name: str, clock: Callable[[], float] = time.time, pause: Callable[[float], None] = time.sleep
    ) -> None:
        """Takes the place `url`/`name`, such as `s3://bucket/runs` (pyarrow's options may follow a `?`).

        Raises `UserError` when it cannot be reached or another machine works on this run.
        """
        self._clock, self._pause = clock, pause
        self._owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._lost = False
        self._end = threading.Event()
        try:
            from pyarrow.fs import FileSystem

            self._files, base = FileSystem.from_uri(url)
        except (OSError, ValueError) as error:
            raise UserError(f"storage {_without_options(url)} cannot be opened: {_line(error)}") from None
        self._base = f"{base.rstrip('/')}/{name}"
        self.place = f"{_without_options(url)}/{name}"
        try:
            self._acquire()
        except OSError as error:
            raise UserError(f"storage {self.place} cannot be written: {_line(error)}") from None
        self._renewer = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._renewer.start()

    def fetch(self, folder: Path) -> bool:
        """Brings the stage that `folder` is named after, where the store has all of it; says whether it did.

        The folder appears when it is complete. Raises `Fault` when a copy fails or a file is not what the marker says.
        """
        with self._faults(f"fetching {folder.name}"):
            listed = self._read(f"stages/{folder.name}.complete")
            if listed is None:
                return False
            partial = folder.with_name(f"{folder.name}.fetched")
            shutil.rmtree(partial, ignore_errors=True)
            for name, size in json.loads(listed)["files"].items():
                target = partial / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with (
                    self._files.open_input_stream(f"{self._base}/stages/{folder.name}/{name}") as source,
                    target.open("wb") as sink,
                ):
                    shutil.copyfileobj(source, sink, _CHUNK)
                if target.stat().st_size != size:
                    raise Fault(f"{self.place}/stages/{folder.name}/{name} has not the {size} bytes that it should")
            partial.mkdir(parents=True, exist_ok=True)
            partial.rename(folder)
            return True

    def keep(self, folder: Path) -> None:
        """Copies a finished stage into the store, unless it is there, then the state of the run. Raises `Fault`."""
        with self._faults(f"keeping {folder.name}"):
            self._still_ours()
            marker = f"stages/{folder.name}.complete"
            if self._read(marker) is None:
                files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
                for name, path in sorted(files.items()):
                    target = f"{self._base}/stages/{folder.name}/{name}"
                    self._files.create_dir(target.rpartition("/")[0])
                    with path.open("rb") as source, self._files.open_output_stream(target) as sink:
                        shutil.copyfileobj(source, sink, _CHUNK)
                sizes = {name: path.stat().st_size for name, path in files.items()}
                self._write(marker, json.dumps({"files": sizes}))
            self.keep_state(folder.parents[1])

    def keep_state(self, root: Path) -> None:
        """Copies the small files of a run directory: what happened, and what came of it. Raises `Fault`."""
        with self._faults("keeping the run's state"):
            for name in _STATE:
                if (root / name).is_file():
                    self._write(name, (root / name).read_text(encoding="utf-8"))

    def fetch_state(self, root: Path) -> None:
        """Brings the run's history to a machine that has none of it, so that it goes on there. Raises `Fault`."""
        with self._faults("fetching the run's state"):
            for name in ("events.jsonl", "metrics.jsonl"):
                text = None if (root / name).exists() else self._read(name)
                if text is not None:
                    (root / name).write_text(text, encoding="utf-8")

    def close(self) -> None:
        """Lets another machine in."""
        self._end.set()
        self._renewer.join()
        with self._faults("giving the lease back"):
            if not self._lost and self._owner_of(self._lease()) == self._owner:
                self._files.delete_file(f"{self._base}/lease.json")

    def _acquire(self) -> None:
        self._files.create_dir(f"{self._base}/stages")
        lease = self._lease()
        if lease is not None and (self._is_current(lease) or self._is_renewed(lease)):
            raise UserError(
                f"run {self.place} is in use by {lease['owner']}; wait for it, or {_LEASE_S / 60:.0f} minutes where it "
                "is gone"
            )
        self._write_lease()
        self._pause(_SETTLE_S)
        if (owner := self._owner_of(self._lease())) != self._owner:  # of several that write at once the last is left
            raise UserError(f"run {self.place} was taken by {owner} at the same moment")

    def _lease(self) -> dict[str, Any] | None:
        text = self._read("lease.json")
        return None if text is None else dict(json.loads(text))

    @staticmethod
    def _owner_of(lease: dict[str, Any] | None) -> str | None:
        return None if lease is None else str(lease["owner"])

    def _is_current(self, lease: dict[str, Any]) -> bool:
        """Whether a lease runs, by this machine's clock; one that would run for longer than a lease does, does not."""
        return 0 < float(lease["until"]) - self._clock() <= _LEASE_S

    def _is_renewed(self, lease: dict[str, Any]) -> bool:
        """Whether somebody renews a lease that this machine's clock takes to be over."""
        line = (
            f"run {self.place} was left by {lease['owner']}, it seems; looking for {_WATCH_S:.0f} s whether it goes on"
        )
        print(f"spftsql: {line}", file=sys.stderr, flush=True)
        self._pause(_WATCH_S)
        return self._lease() not in (None, lease)

    def _write_lease(self) -> None:
        lease = {"owner": self._owner, "until": self._clock() + _LEASE_S, "renewal": uuid.uuid4().hex}
        self._write("lease.json", json.dumps(lease))

    def _renew(self) -> None:
        while not self._end.wait(_RENEW_S):
            try:
                self._renew_once()
            except OSError:
                continue  # the store is away for a moment; the lease is longer than several of these
            if self._lost:
                return

    def _renew_once(self) -> None:
        if self._owner_of(self._lease()) not in (None, self._owner):
            self._lost = True
        else:
            self._write_lease()

    def _still_ours(self) -> None:
        if self._lost:
            raise Fault(f"run {self.place} was taken over by another machine: this one stops writing to it")

    def _read(self, name: str) -> str | None:
        from pyarrow.fs import FileType

        path = f"{self._base}/{name}"
        if self._files.get_file_info(path).type != FileType.File:
            return None
        with self._files.open_input_stream(path) as stream:
            data: bytes = stream.read()
        return data.decode()

    def _write(self, name: str, text: str) -> None:
        """A small file, whole or not at all: an object appears when it is complete, a file is moved into its place."""
        path = f"{self._base}/{name}"
        local = self._files.type_name == "local"
        written = f"{path}.{self._owner}.tmp" if local else path
        with self._files.open_output_stream(written) as stream:
            stream.write(text.encode())
        if local:
            self._files.move(written, path)

    @contextmanager
    def _faults(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Fault(f"{doing} failed at {self.place}: {_line(error)}; run again") from None


def open_storage(url: str | None, name: str) -> RunStorage | None:
    """The storage of a run, where its recipe names one."""
    return RunStorage(url, name) if url else None


def _without_options(url: str) -> str:
    return url.partition("?")[0].rstrip("/")


def _line(error: Any) -> str:
    return " ".join(str(error).split())[:300]

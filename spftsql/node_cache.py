"""Copies of files and directories on a disk of this machine, shared by its processes and named by their content.

What is on a network mount is read over the network piece by piece, by every process anew; a copy is read once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import stat
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Literal

from spftsql.cache import cache_folder
from spftsql.errors import UserError

PIECE = 1 << 20  # bytes that are copied at once
_MOUNTS = Path("/proc/self/mountinfo")
_PATIENCE, _PAUSE_S = 100, 0.05  # for others that look at the same copy at the same moment
_LOCK, _DRAFT = ".lock", ".draft"
# File systems whose files are elsewhere, or behind a process that may be slow.
_REMOTE = ("9p", "afs", "beegfs", "ceph", "cifs", "fuse", "gfs2", "gluster", "gpfs", "lustre", "nfs", "ocfs2", "smb")
_LOCAL = ("fuseblk", "fuse.fuse-overlayfs")  # other file systems of a local disk, and a container's root
_IN_MEMORY = ("tmpfs", "ramfs")

_log = logging.getLogger(__name__)


class NodeCopies(ABC):
    """The copies in one folder, together at most `max_bytes`; the least recently used goes first, if nobody uses it.

    Processes and threads may share the folder: one makes a copy while the others that want it wait. A copy appears
    whole or not at all. Nothing is raised for trouble with the folder (disk full, no permission, too small): the log
    says so, and that content of the original is never copied by this object.
    """

    def __init__(self, folder: Path, max_bytes: int, held: int | None = None) -> None:
        """At most `held` copies are kept from being removed, those that were asked for last; None: all of them."""
        self._folder, self._max_bytes, self._most = folder, max_bytes, held
        self._held: OrderedDict[str, BinaryIO] = OrderedDict()  # by content: what protects the copy
        self._left: set[tuple[Path, str]] = set()  # originals that are not copied, by content
        self._lock = threading.Lock()

    def copy_of(self, original: Path, content: str) -> Path | None:
        """The copy of an original whose hash is `content`, made where it is missing; None where there can be none.

        It stays where it is until `close`, or until more than `held` others were asked for. Raises what the kind of
        copies raises for an original that cannot be read or has another content.
        """
        with self._lock:
            copy = self._folder / self._name(original, content)
            if content in self._held and copy.exists():
                self._held.move_to_end(content)
                return copy
            if (original, content) in self._left:
                return None
            if not self._is_wanted(original):
                self._left.add((original, content))
                return None
            self._release(content)
            try:
                self._held[content] = self._acquire(original, copy, content)
            except OSError as error:
                _log.warning("%s is not copied to %s: %s", original, self._folder, error.strerror or error)
                self._left.add((original, content))
                return None
            while self._most is not None and len(self._held) > self._most:
                self._release(next(iter(self._held)))
            return copy

    def close(self) -> None:
        """Lets others remove the copies that were asked for here."""
        with self._lock:
            for content in list(self._held):
                self._release(content)

    @abstractmethod
    def _name(self, original: Path, content: str) -> str:
        """The name of the copy: `content`, and perhaps a suffix."""

    @abstractmethod
    def _is_wanted(self, original: Path) -> bool:
        """Whether this original is to be copied at all."""

    @abstractmethod
    def _sizes(self, original: Path) -> Mapping[str, int]:
        """The bytes of every file of a directory, by its path there; of an original that is a file, by `""`."""

    @abstractmethod
    def _fill(self, original: Path, draft: Path, content: str) -> None:
        """Copies into the files of the draft, which have their sizes, and checks that it is `content`."""

    def _release(self, content: str) -> None:
        lock = self._held.pop(content, None)
        if lock is not None:
            lock.close()

    def _acquire(self, original: Path, copy: Path, content: str) -> BinaryIO:
        """A file with a shared lock, which protects a copy that is whole; the kernel frees it when a process dies."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = open(self._folder / f"{content}{_LOCK}", "a+b", buffering=0)  # noqa: SIM115 - kept open
        try:
            for _ in range(_PATIENCE):
                fcntl.flock(lock, fcntl.LOCK_SH)  # waits for whoever makes the copy
                if self._is_whole(copy, lock):
                    os.utime(lock.fileno())  # used now
                    return lock
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:  # others look at it, too
                    time.sleep(_PAUSE_S)
                else:
                    self._make(original, copy, content, lock)
            raise OSError("others use a copy that is damaged")
        except BaseException:
            lock.close()
            raise

    @staticmethod
    def _is_whole(copy: Path, lock: BinaryIO) -> bool:
        """Whether the copy is what was written down when it was complete."""
        with contextlib.suppress(OSError):
            return os.pread(lock.fileno(), 200, 0).decode() == _identity(copy)
        return False

    def _make(self, original: Path, copy: Path, content: str, lock: BinaryIO) -> None:
        """Copies and checks; whoever calls holds the exclusive lock, so that a killed one's leftover is nobody's."""
        draft = self._folder / f".{content}{_DRAFT}"
        try:
            _remove(draft)
            sizes = self._sizes(original)
            self._make_room(sum(sizes.values()), content)
            _reserve(draft, sizes)
            self._fill(original, draft, content)
            for file in _files(draft):
                file.chmod(0o400)
            _remove(copy)
            draft.rename(copy)
        except BaseException:
            with contextlib.suppress(OSError):
                _remove(draft)
            raise
        lock.truncate(0)
        lock.write(_identity(copy).encode())  # at its end, which is its beginning

    def _make_room(self, wanted: int, content: str) -> None:
        """Removes what nobody uses until `wanted` bytes fit; raises `OSError` when they do not.

        Drafts count: those under way have their full size, and what a killed process has left of one goes first.
        """
        refused = OSError(f"{wanted} bytes do not fit into the {self._max_bytes} of the cache")
        if wanted > self._max_bytes:
            raise refused
        found = [path for path in self._folder.iterdir() if path.suffix != _LOCK and _content(path) != content]
        sizes = {path: sum(_size(file) for file in _files(path)) for path in found}
        locks = {path: self._folder / f"{_content(path)}{_LOCK}" for path in found}
        used = sum(sizes.values())

        def turn(path: Path) -> tuple[bool, int]:
            return path.suffix != _DRAFT, locks[path].stat().st_mtime_ns if locks[path].exists() else 0

        for path in sorted(found, key=turn):
            if used + wanted <= self._max_bytes:
                return
            with locks[path].open("a") as lock, contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
                used -= sizes[path]
        if used + wanted > self._max_bytes:
            raise refused


def node_folder(setting: Literal["auto"] | Path | None, name: str, on_disk: bool = False) -> Path | None:
    """The folder `name` of what a `node_cache` says; None where nothing can be kept on this machine's disk.

    The cache folder may be the same for several machines: then it is one for temporary files, which with `on_disk` must
    not be in memory.
    """
    if setting is None:
        return None
    if setting != "auto":
        return setting / name
    with contextlib.suppress(UserError):
        if not is_remote(folder := cache_folder(name)):
            return folder
    folder = Path(tempfile.gettempdir(), f"spftsql-{os.getuid()}-{name}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        ours = folder.lstat().st_uid == os.getuid() and not folder.is_symlink()  # anybody may write to its parent
    except OSError:
        return None
    usable = ours and not is_remote(folder) and not (on_disk and _mount_kind(folder) in _IN_MEMORY)
    return folder if usable else None


def is_remote(path: Path) -> bool:
    """Whether a file is on a mount of another machine (network file systems, and FUSE, which may be one)."""
    kind = _mount_kind(path)
    return kind.startswith(_REMOTE) and kind not in _LOCAL


def _mount_kind(path: Path) -> str:
    """The kind of file system that a path is on; empty where that is not known."""
    try:
        device = os.stat(path).st_dev
        with _MOUNTS.open(encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                fields = line.split()
                major, _, minor = fields[2].partition(":")
                if os.makedev(int(major), int(minor)) == device:
                    return fields[fields.index("-") + 1]
    except (OSError, ValueError, IndexError):
        pass
    return ""


def _content(path: Path) -> str:
    """Which content a copy or a draft in the folder is of."""
    return path.stem.removeprefix(".")


def _files(copy: Path) -> Iterator[Path]:
    """The files of a copy or a draft."""
    if not copy.is_dir():
        yield copy
    for folder, _, names in os.walk(copy):
        yield from (Path(folder, name) for name in sorted(names))


def _size(file: Path) -> int:
    with contextlib.suppress(FileNotFoundError):  # removed by others just now
        return file.stat().st_size
    return 0


def _identity(copy: Path) -> str:
    if not copy.is_dir():
        return _state(copy)
    states = sorted(f"{file.relative_to(copy)} {_state(file)}" for file in _files(copy))
    return hashlib.sha256("\n".join(states).encode("utf-8", "surrogateescape")).hexdigest()


def _state(file: Path) -> str:
    now = file.stat()
    return f"{now.st_ino} {now.st_size} {now.st_mtime_ns} {stat.S_IMODE(now.st_mode):o}"


def _reserve(draft: Path, sizes: Mapping[str, int]) -> None:
    """Makes the files of a draft in their full sizes: a disk that is too full says so before anything is copied."""
    for name, size in sizes.items():
        file = draft / name
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with file.open("wb") as target:
            if size:
                os.posix_fallocate(target.fileno(), 0, size)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

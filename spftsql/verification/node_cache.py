"""Copies of database files on a disk of this machine, by content hash, shared by the workers of the machine.

A database on a network mount is read over the network page by page; a copy is read once. And a copy cannot change
under a run: what is in the folder under a hash has the bytes of that hash.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import stat
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO, Literal

from spftsql.cache import cache_folder
from spftsql.config import VerificationConfig
from spftsql.errors import Fault, UserError

_PIECE = 1 << 20
_HASH_DIGITS = 16
_MOUNTS = Path("/proc/self/mountinfo")
_PATIENCE, _PAUSE_S = 100, 0.05  # for others that look at the same copy at the same moment
_OPEN = 32  # copies that one process keeps others from removing
# File systems whose files are elsewhere, or behind a process that may be slow.
_REMOTE = ("9p", "afs", "beegfs", "ceph", "cifs", "fuse", "gfs2", "gluster", "gpfs", "lustre", "nfs", "ocfs2", "smb")
_LOCAL = ("fuseblk", "fuse.fuse-overlayfs")  # other file systems of a local disk, and a container's root

_log = logging.getLogger(__name__)


class NodeCache:
    """The copies in one folder, together at most `max_bytes`; the least recently used goes first, if nobody uses it.

    Processes and threads may share the folder: one makes a copy while the others that want it wait. A copy appears
    whole or not at all. Nothing is raised for trouble with the folder (disk full, no permission, too small): the log
    says so, and that file is never copied by this process.
    """

    def __init__(self, folder: Path, max_bytes: int, only_remote: bool = False) -> None:
        """With `only_remote` nothing is copied that is on a disk of this machine."""
        self._folder, self._max_bytes, self._only_remote = folder, max_bytes, only_remote
        self._held: OrderedDict[str, BinaryIO] = OrderedDict()  # by content: what protects the copy
        self._left: set[Path] = set()  # originals that are not copied
        self._lock = threading.Lock()

    def copy_of(self, original: Path, content: str) -> Path | None:
        """The copy of a file whose hash is `content`, made where it is missing; None where there can be none.

        It stays where it is at least until 32 other copies were asked for. Raises `Fault` when a copy must be made
        and the original cannot be read, or has another content.
        """
        with self._lock:
            copy = self._folder / f"{content}{original.suffix}"
            if content in self._held and copy.exists():
                self._held.move_to_end(content)
                return copy
            if original in self._left:
                return None
            if (self._only_remote and not is_remote(original)) or _has_log(original):
                self._left.add(original)
                return None
            self._release(content)
            try:
                self._held[content] = self._acquire(original, copy, content)
            except OSError as error:
                _log.warning("%s is not copied to %s: %s", original, self._folder, error.strerror or error)
                self._left.add(original)
                return None
            while len(self._held) > _OPEN:
                self._release(next(iter(self._held)))
            return copy

    def close(self) -> None:
        """Lets others remove the copies that this process has used."""
        with self._lock:
            for content in list(self._held):
                self._release(content)

    def _release(self, content: str) -> None:
        lock = self._held.pop(content, None)
        if lock is not None:
            lock.close()

    def _acquire(self, original: Path, copy: Path, content: str) -> BinaryIO:
        """A file with a shared lock, which protects a copy that is whole; the kernel frees it when a process dies."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = open(self._folder / f"{content}.lock", "a+b", buffering=0)  # noqa: SIM115 - kept open
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
        """Whether the copy is the file that was written down when it was complete."""
        with contextlib.suppress(OSError):
            return os.pread(lock.fileno(), 200, 0).decode() == _identity(copy)
        return False

    def _make(self, original: Path, copy: Path, content: str, lock: BinaryIO) -> None:
        """Copies and checks; whoever calls holds the exclusive lock, so that a killed one's leftover is nobody's."""
        try:
            source = original.open("rb")
        except OSError as error:
            raise Fault(f"{original} cannot be opened: {error.strerror}") from None
        draft = self._folder / f".{content}.draft"
        state = hashlib.sha256()
        try:
            with source, draft.open("wb") as target:
                self._make_room(os.fstat(source.fileno()).st_size, content)
                while piece := _read(source.fileno(), original):
                    state.update(piece)
                    target.write(piece)
            if state.hexdigest()[:_HASH_DIGITS] != content:
                raise Fault(f"{original} is not what it was: its content changed under the run")
            draft.chmod(0o400)
            draft.replace(copy)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        lock.truncate(0)
        lock.write(_identity(copy).encode())  # at its end, which is its beginning

    def _make_room(self, wanted: int, content: str) -> None:
        """Removes copies that nobody uses until `wanted` bytes fit; raises `OSError` when they do not."""
        copies = {path.stem: path for path in self._folder.iterdir() if path.suffix != ".lock" and path.stem[0] != "."}
        copies.pop(content, None)
        sizes = {name: path.stat().st_size for name, path in copies.items()}
        used = sum(sizes.values())
        locks = {name: self._folder / f"{name}.lock" for name in copies}
        for name in sorted(copies, key=lambda name: locks[name].stat().st_mtime_ns if locks[name].exists() else 0):
            if used + wanted <= self._max_bytes:
                return
            with locks[name].open("a") as lock, contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                copies[name].unlink(missing_ok=True)
                used -= sizes[name]
        if used + wanted > self._max_bytes:
            raise OSError(f"{wanted} bytes do not fit into the {self._max_bytes} of the cache")


def open_node_cache(config: VerificationConfig) -> NodeCache | None:
    """The copies that `verification.node_cache` asks for."""
    folder = node_folder(config.node_cache, "databases")
    only_remote = config.node_cache == "auto"
    return NodeCache(folder, config.copies_mb << 20, only_remote) if folder else None


def node_folder(setting: Literal["auto"] | Path | None, name: str) -> Path | None:
    """The folder `name` of what `verification.node_cache` says; None where nothing can be kept on this machine's disk.

    The cache folder may be the same for several machines: then it is one for temporary files.
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
    return folder if ours and not is_remote(folder) else None


def is_remote(path: Path) -> bool:
    """Whether a file is on a mount of another machine (network file systems, and FUSE, which may be one)."""
    try:
        device = os.stat(path).st_dev
        with _MOUNTS.open(encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                fields = line.split()
                major, _, minor = fields[2].partition(":")
                if os.makedev(int(major), int(minor)) == device:
                    kind = fields[fields.index("-") + 1]
                    return kind.startswith(_REMOTE) and kind not in _LOCAL
    except (OSError, ValueError, IndexError):
        pass
    return False


def _has_log(original: Path) -> bool:
    """Whether a part of the content is in a file beside it, which a copy would lack."""
    for name in (f"{original}-wal", f"{original}-journal", f"{original}.wal"):
        with contextlib.suppress(OSError):
            if os.stat(name).st_size:
                return True
    return False


def _identity(copy: Path) -> str:
    now = copy.stat()
    return f"{now.st_ino} {now.st_size} {now.st_mtime_ns} {stat.S_IMODE(now.st_mode):o}"


def _read(descriptor: int, original: Path) -> bytes:
    try:
        return os.read(descriptor, _PIECE)
    except OSError as error:
        raise Fault(f"{original} cannot be read: {error.strerror}") from None

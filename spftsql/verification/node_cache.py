"""Copies of database files on a disk of this machine, by content hash, shared by the workers of the machine.

A copy cannot change under a run: what is in the folder under a hash has the bytes of that hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from spftsql.config import VerificationConfig
from spftsql.errors import Fault
from spftsql.node_cache import PIECE, NodeCopies, is_remote, node_folder

_HASH_DIGITS = 16
_HELD = 32  # copies that one process keeps others from removing


class NodeCache(NodeCopies):
    """`NodeCopies` of database files. `copy_of` raises `Fault` for an original that cannot be read or has changed."""

    def __init__(self, folder: Path, max_bytes: int, only_remote: bool = False) -> None:
        """With `only_remote` nothing is copied that is on a disk of this machine."""
        super().__init__(folder, max_bytes, _HELD)
        self._only_remote = only_remote

    def _name(self, original: Path, content: str) -> str:
        return f"{content}{original.suffix}"

    def _is_wanted(self, original: Path) -> bool:
        return (not self._only_remote or is_remote(original)) and not _has_log(original)

    def _sizes(self, original: Path) -> Mapping[str, int]:
        try:
            return {"": original.stat().st_size}
        except OSError as error:
            raise Fault(f"{original} cannot be opened: {error.strerror}") from None

    def _fill(self, original: Path, draft: Path, content: str) -> None:
        try:
            source = original.open("rb")
        except OSError as error:
            raise Fault(f"{original} cannot be opened: {error.strerror}") from None
        state = hashlib.sha256()
        with source, draft.open("r+b") as target:
            while piece := _read(source.fileno(), original):
                state.update(piece)
                target.write(piece)
            target.truncate()
            target.flush()
            os.fsync(target.fileno())
        if state.hexdigest()[:_HASH_DIGITS] != content:
            raise Fault(f"{original} is not what it was: its content changed under the run")


def open_node_cache(config: VerificationConfig) -> NodeCache | None:
    """The copies that `verification.node_cache` asks for."""
    folder = node_folder(config.node_cache, "databases")
    only_remote = config.node_cache == "auto"
    return NodeCache(folder, config.copies_mb << 20, only_remote) if folder else None


def _has_log(original: Path) -> bool:
    """Whether a part of the content is in a file beside it, which a copy would lack."""
    for name in (f"{original}-wal", f"{original}-journal", f"{original}.wal"):
        with contextlib.suppress(OSError):
            if os.stat(name).st_size:
                return True
    return False


def _read(descriptor: int, original: Path) -> bytes:
    try:
        return os.read(descriptor, PIECE)
    except OSError as error:
        raise Fault(f"{original} cannot be read: {error.strerror}") from None

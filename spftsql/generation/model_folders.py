"""Where the weights of a model directory are read from: the directory itself, or its copy on a disk of this machine."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from spftsql.config import GenerationConfig
from spftsql.node_cache import PIECE, NodeCopies, is_remote, node_folder
from spftsql.training.artefact import weights_key

_HASHED_BYTES = 32 << 20  # files up to this size are hashed as a whole: configurations, tokenizers, adapters

_log = logging.getLogger(__name__)


class ModelFolders:
    """The folders that an engine or a training reads weights from; their copies are in use until it is closed.

    Only what is opened for weights is found here. A model keeps the name of its own directory everywhere else.
    """

    def __init__(self, config: GenerationConfig | None) -> None:
        """Copies as `generation.node_cache` says; nothing without a configuration."""
        self._copies: _Directories | None = None
        self._only_remote = config is not None and config.node_cache == "auto"
        if config is not None and (folder := node_folder(config.node_cache, "models", on_disk=True)):
            self._copies = _Directories(folder, config.copies_mb << 20)

    def of(self, directory: Path | str) -> Path:
        """The copy of a model directory, made where it is missing, or the directory where there is to be none.

        Raises nothing: with a directory that cannot be read whoever loads it will say so.
        """
        directory = Path(directory)
        if self._copies is None:
            return directory
        try:
            if self._only_remote and not any(is_remote(directory / name) for name in _listing(directory)):
                return directory
            content = directory_key(directory)
        except OSError as error:
            _log.warning("%s is not copied: %s", directory, error.strerror or error)
            return directory
        return self._copies.copy_of(directory, content) or directory

    def close(self) -> None:
        """Lets others remove the copies."""
        if self._copies is not None:
            self._copies.close()

    def __enter__(self) -> ModelFolders:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def directory_key(directory: Path) -> str:
    """A hash that changes with the content of a model directory, without reading all of it.

    In it are names, sizes and times of all files, the content of those up to 32 MiB, and samples of all weights. The
    time of an inode's last change is among them, which no program can set: weights that were put in place of others,
    with their size and their date, have another one. Raises `OSError` when something cannot be read or copied.
    """
    digest = hashlib.sha256(weights_key(directory).encode())
    for name, state in sorted(_listing(directory).items()):
        times = f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"
        digest.update(f"{name}\0{times}\0".encode("utf-8", "surrogateescape"))
        if state.st_size <= _HASHED_BYTES:
            digest.update(hashlib.sha256((directory / name).read_bytes()).digest())
    return digest.hexdigest()[:16]


class _Directories(NodeCopies):
    """`NodeCopies` of model directories, by `directory_key`."""

    def _name(self, original: Path, content: str) -> str:
        return content

    def _is_wanted(self, original: Path) -> bool:
        return True

    def _sizes(self, original: Path) -> Mapping[str, int]:
        return {name: state.st_size for name, state in _listing(original).items()}

    def _fill(self, original: Path, draft: Path, content: str) -> None:
        for file in sorted(path for path in draft.rglob("*") if path.is_file()):
            with (original / file.relative_to(draft)).open("rb") as source, file.open("r+b") as target:
                while piece := source.read(PIECE):
                    target.write(piece)
                target.truncate()
                target.flush()
                os.fsync(target.fileno())
        if directory_key(original) != content:
            raise OSError("it changed while it was copied")


def _listing(directory: Path) -> dict[str, os.stat_result]:
    """The files of a directory and of those in it. Raises `OSError` for what a copy would lack or change."""
    found: dict[str, os.stat_result] = {}

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(directory, onerror=refuse):
        for name in (*folders, *names):
            path = Path(folder, name)
            state = path.stat()
            if stat.S_ISREG(state.st_mode):
                found[str(path.relative_to(directory))] = state
            elif not stat.S_ISDIR(state.st_mode) or path.is_symlink():
                raise OSError(f"{path} is neither a file nor a folder")
    return found

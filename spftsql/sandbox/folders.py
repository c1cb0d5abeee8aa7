"""Which folders a child may read, where the kernel can hold it to them (see `fence`)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Folder(NamedTuple):
    """A folder as it is now: one that is made anew under the same name is another, also to the kernel."""

    path: str
    device: int
    inode: int


class Folders:
    """The folders of the databases that were asked for so far.

    A child cannot be given a folder once its fence is up, so each new one costs a fresh child. Benchmarks have hundreds
    of databases, every one in a folder of its own beside the others: where a second such folder is asked for, all of
    its neighbours that hold a file of the same kind become readable with it.
    """

    def __init__(self) -> None:
        self.known: frozenset[Folder] = frozenset()
        self._places: dict[Path, tuple[tuple[int, int], Folder]] = {}

    def expect(self, databases: Iterable[Path]) -> None:
        """Makes the folders of these files known, and no others."""
        self.known |= _those_there({database.resolve().parent for database in databases})

    def of(self, database: Path) -> Folder | None:
        """The folder in which the file lies that `database` names, links followed; from now on it is known.

        None where there is no such file.
        """
        try:
            now = database.stat()
            place = self._places.get(database)
            if place is None or place[0] != (now.st_dev, now.st_ino):
                place = self._places[database] = (now.st_dev, now.st_ino), _folder(database.resolve().parent)
        except OSError:
            return None
        folder = place[1]
        if folder not in self.known:
            self.known |= {folder} | self._neighbours(Path(folder.path), database.suffix)
        return folder

    def _neighbours(self, folder: Path, suffix: str) -> frozenset[Folder]:
        if not suffix or not any(Path(other.path).parent == folder.parent for other in self.known):
            return frozenset()
        return _those_there({file.parent for file in folder.parent.glob(f"*/*{suffix}")})


def _folder(path: Path) -> Folder:
    now = path.stat()
    return Folder(str(path), now.st_dev, now.st_ino)


def _those_there(paths: Iterable[Path]) -> frozenset[Folder]:
    return frozenset(_folder(path) for path in paths if path.is_dir())

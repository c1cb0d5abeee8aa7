"""Which folders a child may read, where the kernel can hold it to them (see `fence`)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class Folders:
    """The folders of the databases that were asked for so far.

    A child cannot be given a folder once its fence is up, so each new one costs a fresh child. Benchmarks have hundreds
    of databases, every one in a folder of its own beside the others: where a second such folder is asked for, all of
    its neighbours that hold a file of the same kind become readable with it.
    """

    def __init__(self) -> None:
        self.known: frozenset[str] = frozenset()
        self._places: dict[str, tuple[tuple[int, int], str]] = {}

    def expect(self, databases: Iterable[Path]) -> None:
        """Makes the folders of these files known, and no others."""
        self.known |= {str(database.resolve().parent) for database in databases}

    def of(self, database: Path) -> str:
        """The folder in which the file lies that `database` names, links followed; from now on it is known."""
        try:
            now = database.stat()
        except OSError:
            return str(database.parent)  # the child will say what is wrong with it
        identity = (now.st_dev, now.st_ino)
        place = self._places.get(str(database))
        if place is None or place[0] != identity:
            place = self._places[str(database)] = identity, str(database.resolve().parent)
        folder = place[1]
        if folder not in self.known:
            self.known |= {folder} | self._neighbours(Path(folder), database.suffix)
        return folder

    def _neighbours(self, folder: Path, suffix: str) -> frozenset[str]:
        if not suffix or not any(Path(other).parent == folder.parent for other in self.known):
            return frozenset()
        return frozenset(str(file.parent) for file in folder.parent.glob(f"*/*{suffix}"))

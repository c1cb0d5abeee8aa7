"""What a run takes of the disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from spftsql.training.artefact import WEIGHTS


@dataclass(frozen=True)
class DiskUse:
    """Bytes of the weights of models, and of everything else; `models` counts the directories with weights."""

    weights: int
    rest: int
    models: int

    def sentence(self) -> str:
        """The use in words."""
        return f"on disk {_size(self.weights)} in the weights of {self.models} models, {_size(self.rest)} in all else"


def disk_use(root: Path) -> DiskUse:
    """Counts the files below a run directory, those of stages that it shares with other runs too."""
    weights = rest = 0
    models = set[str]()
    for top in {root, (root / "stages").resolve()}:
        for folder, _, names in os.walk(top):
            if top == root and (root / "stages") in (Path(folder), *Path(folder).parents):
                continue  # counted from its own place
            for name in names:
                path = Path(folder, name)
                try:
                    size = path.lstat().st_size
                except OSError:  # a run that goes on removes files
                    continue
                if path.suffix in WEIGHTS:
                    weights += size
                    models.add(folder)
                else:
                    rest += size
    return DiskUse(weights, rest, len(models))


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"

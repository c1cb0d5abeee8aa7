"""Which models keep their weights when `retention` is `needed`.

A model's directory stays, with its card and its manifest; what goes is what is large. That a finished stage is kept
does not depend on weights, so that a resume of the same settings reads none. When a change of settings asks for a model
again, it is trained again from the rows that its stage has kept (`Stages.train`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from spftsql.training.artefact import MANIFEST, REMOVED, WEIGHTS, named_base


def forget_weights(stages: Path, keep: Iterable[Path]) -> int:
    """Removes the weights of all trained models below a folder of stages, but for `keep` and the bases of its adapters.

    The base model of the run is no trained model and always stays. Returns the bytes that became free.
    """
    kept = set()
    for folder in keep:
        model: Path | None = folder
        while model is not None and model.is_dir() and model.resolve() not in kept:
            kept.add(model.resolve())
            base = named_base(model)
            model = Path(base) if base is not None else None
    return sum(
        forget_model(manifest.parent)
        for manifest in stages.glob(f"train-*/*/{MANIFEST}")
        if not manifest.parents[1].name.endswith(".partial") and manifest.parent.resolve() not in kept
    )


def forget_model(model: Path) -> int:
    """Removes the weights of a model directory and leaves a note; returns the bytes that became free."""
    files = [path for path in model.iterdir() if path.suffix in WEIGHTS]
    if files:
        (model / REMOVED).write_text("The weights were removed because of `retention: needed`.\n", encoding="utf-8")
    freed = 0
    for path in files:
        freed += path.stat().st_size
        path.unlink()
    return freed


def has_weights(model: Path) -> bool:
    """Whether a model directory is there with its weights."""
    return model.is_dir() and not (model / REMOVED).exists()

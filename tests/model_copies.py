"""Copies of models with other weights in them: who answers as the other model has read the copy."""

from __future__ import annotations

import os
from pathlib import Path

from spftsql.generation.model_folders import ModelFolders, directory_key


def exchange_weights(folders: ModelFolders, model: Path, other: Path) -> Path:
    """Writes the weights of `other`, a model of the same size, into the copy of `model`, which is returned."""
    copy = folders.of(model)
    assert copy != model and copy.name == directory_key(model)
    weights, found = copy / "model.safetensors", (other / "model.safetensors").read_bytes()
    before = weights.stat()
    assert before.st_size == len(found) and weights.read_bytes() != found
    weights.chmod(0o600)
    weights.write_bytes(found)
    weights.chmod(0o400)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    return copy

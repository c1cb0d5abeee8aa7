"""Which weights `retention: needed` gives up, what stays of a model, and that nobody is served an empty directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spftsql.errors import UserError
from spftsql.generation.checkpoint import check_checkpoint
from spftsql.selfplay.retention import forget_weights, has_weights


def model(folder: Path, base: Path | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"w" * 100)
    (folder / "spftsql.json").write_text("{}")
    (folder / "README.md").write_text("card")
    if base is not None:
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    else:
        (folder / "config.json").write_text("{}")
    return folder


def test_what_is_large_goes_and_what_tells_of_it_stays(tmp_path: Path) -> None:
    base = model(tmp_path / "base-1" / "base")
    kept, gone = model(tmp_path / "train-a-1" / "kept"), model(tmp_path / "train-a-1" / "gone")
    begun = model(tmp_path / "train-b-2.partial" / "begun")
    assert forget_weights(tmp_path, [kept]) == 100
    assert [has_weights(one) for one in (base, kept, gone, begun)] == [True, True, False, True]
    assert sorted(path.name for path in gone.iterdir()) == [
        "README.md", "config.json", "spftsql.json", "weights-removed.txt",
    ]  # fmt: skip
    assert forget_weights(tmp_path, [kept]) == 0
    with pytest.raises(UserError, match="lost its weights to retention=needed"):
        check_checkpoint(str(gone))


def test_the_bases_of_kept_adapters_stay(tmp_path: Path) -> None:
    below = model(tmp_path / "train-a-1" / "below")
    adapter = model(tmp_path / "train-b-2" / "adapter", base=below)
    other = model(tmp_path / "train-b-2" / "other", base=below)
    assert forget_weights(tmp_path, [adapter]) == 100
    assert [has_weights(one) for one in (below, adapter, other)] == [True, True, False]
    hub = model(tmp_path / "train-c-3" / "hub", base=Path("org/name"))  # a name, not a directory
    assert forget_weights(tmp_path, [hub]) == 200 and has_weights(hub)

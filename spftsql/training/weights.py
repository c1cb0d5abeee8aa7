"""Trained weights as files: a complete model, an adapter over its base, and an adapter merged into it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from spftsql.config import Config
from spftsql.training.artefact import named_base
from spftsql.training.job import Prepared


def save_weights(
    causal: Any, adapted: Any, dtype: torch.dtype, prepared: Prepared, config: Config, folder: Path
) -> None:
    """Writes what was trained into `folder`, and leaves the model in memory as it is.

    Without adapters (`adapted` None) the whole model in `dtype`; with them the adapter alone, or the model with the
    adapter merged, as `training.lora.keep` says.
    """
    if adapted is None:
        _save_model(causal, dtype, folder)
        return
    lora = config.training.lora
    assert lora is not None  # there are adapters
    if lora.keep == "adapter":
        _save_adapter(adapted, prepared, folder)
        return
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".adapter-") as adapter:
        _save_adapter(adapted, prepared, Path(adapter))
        merge_adapter(Path(adapter), folder, dtype)


def _save_model(causal: Any, dtype: torch.dtype, folder: Path) -> None:
    causal.save_pretrained(folder, state_dict={name: value.to(dtype) for name, value in causal.state_dict().items()})
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _save_adapter(adapted: Any, prepared: Prepared, folder: Path) -> None:
    """The base is named as the recipe names it: by its Hub name, or by the directory where it lies."""
    model = prepared.job.model
    base = named_base(model) or str(model.resolve() if model.is_dir() else model)
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's own card: ours is written with the rest


def merge_adapter(adapter: Path, folder: Path, dtype: torch.dtype | None) -> None:
    """Writes the complete model that an adapter directory and its base come to, in `dtype` (None: the base's own).

    The sum is made in float32. Raises `UserError` without the base.
    """
    from transformers import AutoConfig

    from spftsql.training.artefact import resolve_model
    from spftsql.training.model import load_causal_lm

    base = named_base(adapter)
    assert base is not None  # the caller has an adapter
    if dtype is None:
        dtype = AutoConfig.from_pretrained(resolve_model(base)).get_text_config().dtype or torch.float32
    folder.mkdir(parents=True, exist_ok=True)
    load_causal_lm(adapter, torch.float32).to(dtype).save_pretrained(folder)

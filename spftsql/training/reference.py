"""Log-probabilities of the frozen reference: computed once per round, before the first step, and kept by content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from spftsql.cache import cache_folder
from spftsql.config import TrainingConfig
from spftsql.generation.model_folders import ModelFolders
from spftsql.records import content_hash
from spftsql.training.artefact import named_base, resolve_model, tokenizer_hash
from spftsql.training.batches import Encoded, collate, split
from spftsql.training.job import Prepared
from spftsql.training.model import CompletionModel, load_causal_lm, sequence_sums

_WEIGHTS = (".safetensors", ".bin")


def reference_logps(
    prepared: Prepared,
    training: TrainingConfig,
    dtype: torch.dtype,
    device: torch.device,
    rank: int,
    workers: int,
    total: Callable[[Tensor], Tensor],
) -> Tensor:
    """The values log ρ(y|x) and log ρ(y′|x) of every row under the frozen reference: [rows, 2], float32, on the CPU.

    Each worker computes its part of the rows (`total` adds up over workers). The result is kept in the cache under a
    hash of the reference's weights and tokenizer and of the rows' tokens: another mode or seed over the same pairs, and
    a resume, find it there. The reference leaves memory before the model in training enters it: two adapters of one
    base never hold it twice. Rows that are no pairs stay 0.
    """
    result = torch.zeros(len(prepared.rows), 2)
    kept: Path | None = None
    found = 0.0
    if rank == 0:  # its cache counts: other machines have others
        kept = cache_folder("reference") / f"{_key(prepared, dtype)}.pt"
        if kept.is_file():
            result, found = torch.load(kept, weights_only=True), 1.0
    if total(torch.tensor([found], device=device)).item() == 0:
        _compute(prepared, training, dtype, device, rank, workers, result)
    result = total(result.to(device)).cpu()
    if kept is not None and not found:
        temporary = kept.with_suffix(f".{os.getpid()}.tmp")
        torch.save(result, temporary)
        temporary.replace(kept)
    return result


def _compute(
    prepared: Prepared,
    training: TrainingConfig,
    dtype: torch.dtype,
    device: torch.device,
    rank: int,
    workers: int,
    result: Tensor,
) -> None:
    """Fills in this worker's part of the rows."""
    rows = prepared.rows
    pairs = [i for i, row in enumerate(rows) if row.rejected is not None]
    # Without a backward pass memory is no concern but for the tokens: questions of one schema all go together.
    passes = split(rows, pairs, workers, len(pairs), training.micro_tokens, training.sharing)[rank] if pairs else []
    model = (
        CompletionModel(load_causal_lm(prepared.reference, dtype, prepared.node), training.sharing).to(device).eval()
    )
    with torch.inference_mode():
        for indices in filter(None, passes):
            micro = collate([rows[i] for i in indices], prepared.pad_id, False, training.sharing).to(device)
            summed = sequence_sums(model(micro), micro).cpu()
            result[indices, 0], result[indices, 1] = summed[: len(indices)], summed[len(indices) :]


def _key(prepared: Prepared, dtype: torch.dtype) -> str:
    with ModelFolders(prepared.node) as folders:
        weights = _weights_hash(prepared.reference, folders)
    return content_hash(weights, tokenizer_hash(prepared.reference), str(dtype), _rows_hash(prepared.rows))


def _weights_hash(folder: Path, folders: ModelFolders) -> str:
    """A hash of all bytes of the weights and of an adapter's base: small steps in bfloat16 change few of them."""
    digest = hashlib.sha256()
    files = folders.of(folder).iterdir()
    for path in sorted(path for path in files if path.suffix in _WEIGHTS or path.name == "config.json"):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    if base := named_base(folder):
        digest.update((folder / "adapter_config.json").read_bytes())
        digest.update(_weights_hash(resolve_model(base), folders).encode())
    return digest.hexdigest()


def _rows_hash(rows: Sequence[Encoded]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.prompt} {row.chosen} {row.rejected}\n".encode())
    return digest.hexdigest()

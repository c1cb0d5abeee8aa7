"""The portable engine: transformers models and a batched decoding loop, on one GPU or on the CPU.

The loop differs from `model.generate` in what the method needs: a row's samples are drawn with the row's own seed,
whatever else is in the batch; what prompts begin with alike, such as a schema, is read once for all of them, and a
prompt once for all of its samples; finished rows leave the batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch

from spftsql.config import Config
from spftsql.errors import Fault
from spftsql.generation.checkpoint import Checkpoint, Completion, Prompt
from spftsql.generation.engine import CheckpointEngine, Completed, Recent, RequestsFailed
from spftsql.generation.model_folders import ModelFolders
from spftsql.training.artefact import quiet_transformers

_MODELS_KEPT = 2
_BATCH_TOKENS = 65_536  # prompt and answer tokens of a batch: what its KV cache may come to
_BATCH_ROWS = 256
_WINDOW = 1024  # prompts that are put into batches together
_FULL_BATCH = 32  # rows from which a batch takes no prompt of another database
_SHARED = 32  # tokens at the beginning of all prompts of a batch from which they are read apart


@dataclass(frozen=True)
class _Loaded:
    """A model, whose weights on the CPU are pages of the files in `folders`."""

    model: Any
    folders: ModelFolders


@dataclass
class _Row:
    """One sample being written; `uniforms` are its draws, one per token (`None`: greedy)."""

    source: int
    prompt: Prompt
    uniforms: torch.Tensor | None
    tokens: list[int] = field(default_factory=list)


class TransformersEngine(CheckpointEngine):
    """`Engine` over `transformers`. Runs on CUDA where there is a device, in float32 on the CPU."""

    def __init__(self, config: Config) -> None:
        """Loads nothing."""
        super().__init__(config)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._dtype = torch.float32 if self._device.type == "cpu" else getattr(torch, config.model.dtype)
        self._models: Recent[_Loaded] = Recent(_MODELS_KEPT, lambda loaded: loaded.folders.close())

    def close(self) -> None:
        """See `Engine`."""
        with self._lock:
            self._models.clear()

    def _complete(self, checkpoint: Checkpoint, prompts: Iterator[tuple[int, Prompt]]) -> Iterator[Completed]:
        while window := list(islice(prompts, _WINDOW)):
            try:
                model = self._models.get(checkpoint.directory, lambda: self._load(checkpoint)).model
            except Exception as error:  # of many libraries: the weights' format, the architecture, the adapter
                reason = f"{type(error).__name__}: {error}"
                raise Fault(f"transformers cannot load {checkpoint.directory}: {reason}") from error
            for batch in _batches([prompt for _, prompt in window]):
                try:
                    rows = self._decode(model, checkpoint.stops, batch)
                except Exception as error:  # the device out of memory, a kernel that fails
                    self._models.clear()
                    reason = f"{type(error).__name__}: {error}"
                    raise RequestsFailed(f"transformers failed with {checkpoint.directory}: {reason}") from error
                found: dict[int, list[Completion]] = {at: [] for at, _ in batch}
                for row in rows:
                    found[row.source].append(Completion(row.tokens, row.tokens[-1] in checkpoint.stops))
                yield from (Completed(window[at][0], prompt, found[at]) for at, prompt in batch)

    def _load(self, checkpoint: Checkpoint) -> _Loaded:
        from transformers import AutoModelForCausalLM

        quiet_transformers()
        begin = time.monotonic()
        folders = ModelFolders(self._config.generation)
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(folders.of(checkpoint.base), dtype=self._dtype)
            if checkpoint.base != checkpoint.directory:
                from peft import PeftModel

                model = PeftModel.from_pretrained(model, folders.of(checkpoint.directory))
            model = model.to(self._device).eval()
        except BaseException:
            folders.close()
            raise
        self.loading_s += time.monotonic() - begin
        return _Loaded(model, folders)

    @torch.inference_mode()
    def _decode(self, model: Any, stops: frozenset[int], prompts: Sequence[tuple[int, Prompt]]) -> list[_Row]:
        """Samples of a batch of (position, prompt), row by row in their order."""
        output, mask = self._read(model, [prompt.tokens for _, prompt in prompts])
        rows = [_Row(i, p, u) for i, p in prompts for u in _draws(p)]
        spread = [at for at, (_, p) in enumerate(prompts) for _ in range(_samples(p))]
        logits, cache, mask = _select(output.logits[:, -1], output.past_key_values, mask, spread)
        active = rows
        while True:
            self.steps += 1
            tokens = self._choose(logits, active)
            for row, token in zip(active, tokens, strict=True):
                row.tokens.append(token)
            keep = [
                at for at, row in enumerate(active) if row.tokens[-1] not in stops and len(row.tokens) < row.prompt.room
            ]
            if not keep:
                return rows
            if len(keep) < len(active):
                active = [active[at] for at in keep]
                _, cache, mask = _select(logits, cache, mask, keep)
            mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
            output = model(
                input_ids=torch.tensor([[row.tokens[-1]] for row in active], device=self._device),
                attention_mask=mask,
                position_ids=mask.sum(1, keepdim=True) - 1,
                past_key_values=cache,
                use_cache=True,
            )
            logits, cache = output.logits[:, -1], output.past_key_values

    def _read(self, model: Any, prompts: Sequence[list[int]]) -> tuple[Any, torch.Tensor]:
        """What the model says behind every prompt, and the mask of its cache."""
        shared = _shared(prompts)
        rests = [tokens[shared:] for tokens in prompts]
        width = max(map(len, rests))
        mask = torch.tensor([[1] * shared + [0] * (width - len(rest)) + [1] * len(rest) for rest in rests])
        mask = mask.to(self._device)
        cache = None
        if shared:
            beginning = torch.tensor([prompts[0][:shared]], device=self._device)
            cache = model(input_ids=beginning, use_cache=True, logits_to_keep=1).past_key_values
            cache.batch_repeat_interleave(len(prompts))
        output = model(
            input_ids=torch.tensor([[0] * (width - len(rest)) + rest for rest in rests], device=self._device),
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, shared:],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output, mask

    def _choose(self, logits: torch.Tensor, rows: Sequence[_Row]) -> list[int]:
        """The next token of every row: the likeliest, or by inversion of the cumulative probabilities."""
        tokens = logits.argmax(dim=1)
        drawn = [at for at, row in enumerate(rows) if row.uniforms is not None]
        if drawn:
            heat = torch.tensor([rows[at].prompt.request.temperature for at in drawn], dtype=torch.float64)
            level = torch.stack([u[len(rows[at].tokens)] for at in drawn if (u := rows[at].uniforms) is not None])
            picked = torch.tensor(drawn, device=self._device)
            scaled = logits[picked].double() / heat.to(self._device)[:, None]
            total = scaled.softmax(dim=1).cumsum(dim=1)
            # Rounding leaves the last sum beside 1; the level is relative to it, so that no draw falls behind.
            level = level.to(self._device)[:, None] * total[:, -1:]
            tokens[picked] = torch.searchsorted(total, level, right=True).clamp(max=total.shape[1] - 1)[:, 0]
        return [int(token) for token in tokens.tolist()]


def _shared(prompts: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with alike; 0 where it is not worth a pass. Each keeps one of its own."""
    first, last = min(prompts), max(prompts)
    same = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    same = min(same, *(len(tokens) - 1 for tokens in prompts))
    return same if len(prompts) > 1 and same >= _SHARED else 0


def _samples(prompt: Prompt) -> int:
    return prompt.request.n if prompt.request.temperature > 0 else 1


def _draws(prompt: Prompt) -> list[torch.Tensor | None]:
    """For every sample of a prompt its uniform numbers, from the row's seed plus the sample's index."""
    if prompt.request.temperature == 0:
        return [None]
    return [
        torch.rand(prompt.room, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for seed in range(prompt.request.seed, prompt.request.seed + prompt.request.n)
    ]


def _select(logits: torch.Tensor, cache: Any, mask: torch.Tensor, rows: list[int]) -> tuple[torch.Tensor, Any, Any]:
    """The given rows of a batch's state; a row may be named more than once."""
    if rows == list(range(len(mask))):
        return logits, cache, mask
    picked = torch.tensor(rows, device=mask.device)
    cache.batch_select_indices(picked)
    return logits[picked], cache, mask[picked]


def _batches(prompts: Sequence[Prompt]) -> Iterator[list[tuple[int, Prompt]]]:
    """Positions and prompts in batches bounded by rows and tokens.

    Those of a database share their beginning and stay together; by length, so that little of a batch is padding.
    """
    batch: list[tuple[int, Prompt]] = []
    rows = room = 0
    for at in sorted(range(len(prompts)), key=lambda i: (prompts[i].request.db_id, len(prompts[i].tokens))):
        prompt = prompts[at]
        wide = rows + _samples(prompt)
        longest = max(room, len(prompt.tokens) + prompt.room)
        another = bool(batch) and batch[-1][1].request.db_id != prompt.request.db_id
        full = wide > _BATCH_ROWS or wide * longest > _BATCH_TOKENS
        if batch and (full or (another and rows >= _FULL_BATCH)):
            yield batch
            batch, wide, longest = [], _samples(prompt), len(prompt.tokens) + prompt.room
        batch.append((at, prompt))
        rows, room = wide, longest
    if batch:
        yield batch

"""From training rows to tensors: tokens, the plan of batches, and padded micro-batches.

The plan is a function of the rows, the seed and the number of steps alone. A global batch is divided over workers and
micro-batches after it is drawn, and every loss is normalised over the global batch, so that the number of workers and
the size of a micro-batch change the speed and nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spftsql.errors import UserError
from spftsql.records import Mode, TrainRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WINDOW = 32  # batches that are sorted by length together


@dataclass(frozen=True, slots=True)
class Encoded:
    """A training row as token ids; both completions end with one end token."""

    id: str
    source: str
    prompt: list[int]
    chosen: list[int]
    rejected: list[int] | None
    reward: int | None

    @property
    def length(self) -> int:
        """Tokens of the longer of its one or two sequences."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected or ()))

    @property
    def tokens(self) -> int:
        """Tokens of all its sequences, padding not counted."""
        rejected = len(self.prompt) + len(self.rejected) if self.rejected else 0
        return len(self.prompt) + len(self.chosen) + rejected


def encode_rows(
    rows: Sequence[TrainRow], tokenizer: PreTrainedTokenizerBase, max_length: int, mode: Mode
) -> tuple[list[Encoded], int]:
    """Tokenizes the rows; returns those that fit into `max_length` tokens, and how many did not.

    The prompt is taken as it is: a chat template has put every special token in its place. `sft` and replay rows have
    no rejected completion. Raises `UserError` for a row without prompt or completion, for a pair mode's row without a
    rejected answer or reward, and when no row is left.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise UserError("the tokenizer has no end-of-sequence token; set eos_token in its tokenizer_config.json")
    for row in rows:
        if not row.prompt or not row.chosen:
            raise UserError(f"training row {row.id} has an empty {'completion' if row.prompt else 'prompt'}; remove it")
        if mode != "sft" and not row.replay and (row.rejected is None or row.reward not in (0, 1)):
            raise UserError(f"training row {row.id} has no rejected answer with a reward of 0 or 1; {mode} needs both")
    paired = [mode != "sft" and not row.replay for row in rows]
    prompts = _ids(tokenizer, [row.prompt for row in rows])
    chosen = _ids(tokenizer, [row.chosen for row in rows])
    rejected = iter(_ids(tokenizer, [row.rejected or "" for row, pair in zip(rows, paired, strict=True) if pair]))
    kept = []
    for index, (row, pair) in enumerate(zip(rows, paired, strict=True)):
        if not prompts[index] or not chosen[index]:
            raise UserError(f"training row {row.id} gives no tokens for its prompt or completion; remove it")
        encoded = Encoded(
            id=row.id,
            source=row.source,
            prompt=prompts[index],
            chosen=[*chosen[index], end],
            rejected=[*next(rejected), end] if pair else None,
            reward=row.reward if pair else None,
        )
        if encoded.length <= max_length:
            kept.append(encoded)
    if not kept:
        raise UserError(
            f"none of the {len(rows)} training rows fits into {max_length} tokens; raise model.max_length"
            if rows
            else "there are no training rows"
        )
    return kept, len(rows) - len(kept)


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def plan(
    rows: Sequence[Encoded], steps: int, batch_size: int, seed: int, synthetic_share: float | None
) -> list[list[int]]:
    """The row indices of every global batch: `steps` lists of `batch_size`, the longest row of a batch first.

    With `synthetic_share` every batch holds that share of rows whose source is "synthetic" (rounded to whole rows, at
    least one of each kind) as long as both kinds exist; each kind is drawn in shuffled epochs of its own. Rows of
    similar length meet: up to 32 batches are drawn together, sorted, cut, and shuffled.
    """
    rng = random.Random(f"{seed}/plan")
    kinds = [list(range(len(rows)))]
    sizes = [batch_size]
    if synthetic_share is not None:
        synthetic = [i for i, row in enumerate(rows) if row.source == "synthetic"]
        others = [i for i, row in enumerate(rows) if row.source != "synthetic"]
        if synthetic and others and batch_size > 1:
            count = min(max(round(synthetic_share * batch_size), 1), batch_size - 1)
            kinds, sizes = [synthetic, others], [count, batch_size - count]
    streams = [_Epochs(kind, rng) for kind in kinds]
    # A window spans no more than one epoch of the smallest kind: a row shall not meet itself in a batch.
    epoch = min(len(kind) // size for kind, size in zip(kinds, sizes, strict=True))
    batches: list[list[int]] = []
    while len(batches) < steps:
        window = min(_WINDOW, max(epoch, 1), steps - len(batches))
        parts = []
        for stream, size in zip(streams, sizes, strict=True):
            drawn = sorted(stream.draw(window * size), key=lambda i: -rows[i].length)
            parts.append([drawn[n * size : (n + 1) * size] for n in range(window)])
        together = [[index for part in parts for index in part[n]] for n in range(window)]
        rng.shuffle(together)
        batches += [sorted(batch, key=lambda i: -rows[i].length) for batch in together]
    return batches


class _Epochs:
    """Draws indices in shuffled epochs; a drawing holds an index twice only when it is longer than an epoch."""

    def __init__(self, indices: Sequence[int], rng: random.Random) -> None:
        self._indices, self._rng = indices, rng
        self._left: list[int] = []

    def draw(self, count: int) -> list[int]:
        drawn: list[int] = []
        while len(drawn) < count:
            self._left = self._left or self._rng.sample(self._indices, len(self._indices))
            avoided = set(drawn) if count <= len(self._indices) else set()
            new = [i for i in self._left if i not in avoided][: count - len(drawn)]
            taken = set(new)
            self._left = [i for i in self._left if i not in taken]
            drawn += new
        return drawn


def accumulation(batch_size: int, workers: int, micro_batch: int) -> int:
    """Forward passes per worker and step, the same for all workers and steps."""
    return -(-batch_size // (workers * micro_batch))


def split(batch: Sequence[int], workers: int, micro_batch: int) -> list[list[list[int]]]:
    """A global batch as [worker][forward pass] -> rows; consecutive rows stay together, sizes differ by one at most.

    Workers are at passes of similar length at the same time. A pass is empty where there are fewer rows than passes.
    """
    passes = accumulation(len(batch), workers, micro_batch)
    bounds = [round(n * len(batch) / (passes * workers)) for n in range(passes * workers + 1)]
    pieces = [list(batch[a:b]) for a, b in pairwise(bounds)]
    return [[pieces[p * workers + worker] for p in range(passes)] for worker in range(workers)]


@dataclass(frozen=True)
class Micro:
    """One padded forward pass: S sequences of L tokens, with N target tokens to score.

    `position` is the flat index (in `[S·L]`) of the hidden state that predicts the target; `sequence` the target's
    sequence; `in_prompt` says that it belongs to the prompt. Sequence s belongs to row `row[s]` of the pass;
    `is_rejected[s]` tells y′ from y.
    """

    input_ids: Tensor  # [S, L], padded on the right
    position: Tensor  # [N]
    target: Tensor  # [N]
    sequence: Tensor  # [N]
    in_prompt: Tensor  # [N], bool
    row: Tensor  # [S]
    is_rejected: Tensor  # [S], bool

    def to(self, device: torch.device) -> Micro:
        """The same on `device`."""
        return Micro(**{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})


def collate(rows: Sequence[Encoded], pad_id: int, with_prompt: bool) -> Micro:
    """Pads the rows' sequences on the right and lists the tokens to score: completions, and prompts `with_prompt`."""
    sequences = [(n, row.prompt, row.chosen, False) for n, row in enumerate(rows)]
    sequences += [(n, row.prompt, row.rejected, True) for n, row in enumerate(rows) if row.rejected is not None]
    length = max(len(prompt) + len(completion) for _, prompt, completion, _ in sequences)
    input_ids: list[list[int]] = []
    position: list[int] = []
    target: list[int] = []
    sequence: list[int] = []
    in_prompt: list[bool] = []
    for s, (_, prompt, completion, _) in enumerate(sequences):
        ids = prompt + completion
        input_ids.append(ids + [pad_id] * (length - len(ids)))
        first = 1 if with_prompt else len(prompt)
        position += range(s * length + first - 1, s * length + len(ids) - 1)
        target += ids[first:]
        sequence += [s] * (len(ids) - first)
        in_prompt += [True] * (len(prompt) - first) + [False] * len(completion)
    return Micro(
        input_ids=torch.tensor(input_ids),
        position=torch.tensor(position),
        target=torch.tensor(target),
        sequence=torch.tensor(sequence),
        in_prompt=torch.tensor(in_prompt, dtype=torch.bool),
        row=torch.tensor([n for n, *_ in sequences]),
        is_rejected=torch.tensor([rejected for *_, rejected in sequences], dtype=torch.bool),
    )

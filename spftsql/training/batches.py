"""From training rows to tensors: tokens, the plan of batches, and what one forward pass computes.

The plan is a function of the rows, the seed and the number of steps alone. A global batch is divided over workers and
forward passes after it is drawn, and every loss is normalised over the global batch, so that the number of workers,
the size of a pass and what is shared in it change the speed and nothing else.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from spftsql.errors import UserError
from spftsql.records import Mode, TrainRow
from spftsql.training.prefixes import Block, Ints, common_length, forest, worth_sharing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Sharing = Literal["tree", "none"]
Weigh = Literal["pair", "question"]

_WINDOW = 32  # batches that are sorted together
_SAME_SCHEMA = 64  # tokens that two prompts have in common from their beginning, at least, when they show one schema


@dataclass(frozen=True)
class Encoded:
    """A training row as token ids; both completions end with one end token. `weight` is its share as a pair."""

    id: str
    source: str
    prompt: list[int]
    chosen: list[int]
    rejected: list[int] | None
    reward: int | None
    weight: float = 1.0

    @property
    def length(self) -> int:
        """Tokens of the longer of its one or two sequences."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected or ()))

    @property
    def tokens(self) -> int:
        """Tokens of all its sequences, padding not counted."""
        rejected = len(self.prompt) + len(self.rejected) if self.rejected else 0
        return len(self.prompt) + len(self.chosen) + rejected

    @cached_property
    def shared_tokens(self) -> int:
        """Tokens of all its sequences, their common beginning counted once."""
        if self.rejected is None:
            return len(self.prompt) + len(self.chosen)
        return self.tokens - len(self.prompt) - common_length(self.chosen, self.rejected)

    @cached_property
    def prompt_ids(self) -> Ints:
        """The prompt as an array."""
        return np.asarray(self.prompt, dtype=np.int64)


def encode_rows(
    rows: Sequence[TrainRow],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    mode: Mode,
    weigh: Weigh = "pair",
) -> tuple[list[Encoded], int]:
    """Tokenizes the rows; returns those that fit into `max_length` tokens, and how many did not.

    The prompt is taken as it is: a chat template has put every special token in its place. `sft` and replay rows have
    no rejected completion. With `weigh` "question" the pairs of one question (several samples of the opponent for the
    same prompt and gold) together weigh as much as any other question; the mean weight stays 1. Raises `UserError` for
    a row without prompt or completion, for a pair mode's row without a rejected answer or reward, and when no row is
    left.
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
    return _weighed(kept) if weigh == "question" else kept, len(rows) - len(kept)


def _weighed(rows: list[Encoded]) -> list[Encoded]:
    """The rows with pairs weighing 1 / (pairs of their question), times what makes their mean weight 1."""
    questions = Counter(_question(row) for row in rows if row.rejected is not None)
    scale = questions.total() / max(len(questions), 1)
    return [
        row if row.rejected is None else replace(row, weight=scale / questions[_question(row)])
        for row in rows
    ]  # fmt: skip


def _question(row: Encoded) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(row.prompt), tuple(row.chosen)


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def plan(
    rows: Sequence[Encoded],
    steps: int,
    batch_size: int,
    seed: int,
    synthetic_share: float | None,
    questions_per_schema: int = 1,
) -> list[list[int]]:
    """The row indices of every global batch: `steps` lists of `batch_size`, the longest row of a batch first.

    With `synthetic_share` every batch holds that share of rows whose source is "synthetic" (rounded to whole rows, at
    least one of each kind) as long as both kinds exist; each kind is drawn in shuffled epochs of its own. Rows of
    similar length meet, and so do up to `questions_per_schema` rows whose prompts show the same schema: up to 32
    batches are drawn together, sorted, cut, and shuffled.
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
            drawn = _by_length(rows, stream.draw(window * size), min(questions_per_schema, size))
            parts.append([drawn[n * size : (n + 1) * size] for n in range(window)])
        together = [[index for part in parts for index in part[n]] for n in range(window)]
        rng.shuffle(together)
        batches += [sorted(batch, key=lambda i: -rows[i].length) for batch in together]
    return batches


def _by_length(rows: Sequence[Encoded], drawn: list[int], together: int) -> list[int]:
    """The drawn rows, longest first; up to `together` rows whose prompts begin alike stand side by side."""
    if together < 2:
        return sorted(drawn, key=lambda i: -rows[i].length)
    groups: list[list[int]] = []
    for i in sorted(drawn, key=lambda i: rows[i].prompt):
        if groups and len(groups[-1]) < together:
            before, prompt = rows[groups[-1][-1]].prompt_ids, rows[i].prompt_ids
            if common_length(before, prompt) >= max(_SAME_SCHEMA, min(len(before), len(prompt)) / 2):
                groups[-1].append(i)
                continue
        groups.append([i])
    groups.sort(key=lambda group: -max(rows[i].length for i in group))
    return [i for group in groups for i in group]


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


def split(
    rows: Sequence[Encoded], batch: Sequence[int], workers: int, micro_batch: int, micro_tokens: int, sharing: Sharing
) -> list[list[list[int]]]:
    """A global batch as [worker][forward pass] -> rows, all workers with the same number of passes.

    A pass holds at most `micro_batch` rows, and computes at most `micro_tokens` tokens unless it is a single row (what
    is shared counts once, padding counts). The number of passes is the smallest possible, and their cost is as even as
    it can be: that is what a step waits for. Rows that begin alike stay together where that saves something. A pass
    is empty where there are fewer rows than passes.
    """
    tree = sharing == "tree"
    order = sorted(batch, key=lambda i: rows[i].prompt) if tree else sorted(batch, key=lambda i: -rows[i].length)
    ordered = [rows[i] for i in order]
    shared = [
        worth_sharing(common_length(a.prompt_ids, b.prompt_ids), len(a.prompt), len(b.prompt)) if tree else 0
        for a, b in pairwise(ordered)
    ]

    def cut(capacity: int) -> list[list[int]]:
        pieces: list[list[int]] = []
        cost, longest, sequences = capacity + 1, 0, 0
        for n, row in enumerate(ordered):
            count = 1 if row.rejected is None else 2
            if tree:
                grown = cost + row.shared_tokens - (shared[n - 1] if n else 0)
            else:
                grown = max(longest, row.length) * (sequences + count)
            if not pieces or grown > capacity or len(pieces[-1]) == micro_batch:
                pieces.append([])
                longest = sequences = 0
                grown = row.shared_tokens if tree else row.length * count
            cost, longest, sequences = grown, max(longest, row.length), sequences + count
            pieces[-1].append(order[n])
        return pieces

    passes = -(-len(cut(micro_tokens)) // workers)
    low, high = 1, max(micro_tokens, 1)
    while low < high:  # the smallest capacity that needs no more passes: even costs
        middle = (low + high) // 2
        low, high = (low, middle) if len(cut(middle)) <= passes * workers else (middle + 1, high)
    pieces = cut(high)
    pieces += [[] for _ in range(passes * workers - len(pieces))]
    return [[pieces[p * workers + worker] for p in range(passes)] for worker in range(workers)]


@dataclass(frozen=True)
class Micro:
    """One forward pass over S sequences, with N tokens to score, M of them different.

    Dense, `input_ids` is [S, L], padded on the right. With shared beginnings it is [1, T], a packed forest: token t
    stands at `depth[t]` of its sequence and is seen up to `until[t]`, and `blocks` cuts the work (see `prefixes`).
    `position` is the place (in the flattened `input_ids`) of the hidden state that predicts a target. `scored` are the
    N tokens as indices into the M; `sequence` is each one's sequence; `in_prompt` says that it belongs to the prompt.
    Sequence s belongs to row `row[s]` of the pass; `is_rejected[s]` tells y′ from y.
    """

    input_ids: Tensor  # [S, L] or [1, T]
    position: Tensor  # [M]
    target: Tensor  # [M]
    scored: Tensor  # [N]
    sequence: Tensor  # [N]
    in_prompt: Tensor  # [N], bool
    row: Tensor  # [S]
    is_rejected: Tensor  # [S], bool
    depth: Tensor | None = None  # [T]
    until: Tensor | None = None  # [T]
    blocks: tuple[Block, ...] = ()

    @property
    def computed(self) -> int:
        """Tokens that the pass computes."""
        return self.input_ids.numel()

    def to(self, device: torch.device) -> Micro:
        """The same on `device`."""
        tensors = {name: getattr(self, name) for name in self.__dataclass_fields__}
        moved: dict[str, Any] = {name: v.to(device) for name, v in tensors.items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def collate(rows: Sequence[Encoded], pad_id: int, with_prompt: bool, sharing: Sharing) -> Micro:
    """The rows' sequences for one pass, and the tokens to score: completions, and prompts `with_prompt`."""
    sequences = [(n, row.prompt, row.chosen, False) for n, row in enumerate(rows)]
    sequences += [(n, row.prompt, row.rejected, True) for n, row in enumerate(rows) if row.rejected is not None]
    ids = [prompt + completion for _, prompt, completion, _ in sequences]
    firsts = [1 if with_prompt else len(prompt) for _, prompt, _, _ in sequences]
    depth = until = None
    blocks: tuple[Block, ...] = ()
    if sharing == "tree":
        packed = forest(ids, [len(prompt) for _, prompt, _, _ in sequences])
        depth, until, blocks = torch.from_numpy(packed.depth), torch.from_numpy(packed.until), packed.blocks
        input_ids, paths = packed.ids[None], packed.paths
    else:
        length = max(len(each) for each in ids)
        input_ids = np.full((len(ids), length), pad_id, dtype=np.int64)
        for s, each in enumerate(ids):
            input_ids[s, : len(each)] = each
        paths = [np.arange(s * length, s * length + len(each)) for s, each in enumerate(ids)]
    # A token below a shared beginning is scored once, whichever sequences it belongs to.
    targets = np.concatenate([path[first:] for path, first in zip(paths, firsts, strict=True)])
    before = np.concatenate([path[first - 1 : -1] for path, first in zip(paths, firsts, strict=True)])
    unique, index, scored = np.unique(targets, return_index=True, return_inverse=True)
    counts = [len(each) - first for each, first in zip(ids, firsts, strict=True)]
    in_prompt = [
        n < len(prompt) for (_, prompt, _, _), each, first in zip(sequences, ids, firsts, strict=True)
        for n in range(first, len(each))
    ]  # fmt: skip
    return Micro(
        input_ids=torch.from_numpy(input_ids),
        position=torch.from_numpy(before[index]),
        target=torch.from_numpy(input_ids.reshape(-1)[unique]),
        scored=torch.from_numpy(scored.reshape(-1)),
        sequence=torch.from_numpy(np.repeat(np.arange(len(ids)), counts)),
        in_prompt=torch.tensor(in_prompt, dtype=torch.bool),
        row=torch.tensor([n for n, *_ in sequences]),
        is_rejected=torch.tensor([rejected for *_, rejected in sequences], dtype=torch.bool),
        depth=depth,
        until=until,
        blocks=blocks,
    )

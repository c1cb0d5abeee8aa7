"""Sequences that begin alike, packed so that what they share is computed once.

The sequences of a forward pass form a forest: two of them are one branch as far as their tokens agree. The forest is
laid out depth first, each token once. A token sees its ancestors and itself, and stands at the position that it has in
its own sequence, so that its hidden state is what the sequence alone would give. Depth first, the ancestors of a token
lie before it, and the tokens below it follow it without a gap: token k is seen by token q exactly if k ≤ q < until[k].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

# A beginning this long makes one tree of two sequences, and so does half of the shorter prompt. What all prompts have
# in common (a system message, a token of beginning) is not worth a tree of everything: attention would cost more.
_LEAST_SHARED = 128
_SMALL = 128  # trees up to this size are put into one block with their neighbours
_BLOCK = 256  # the size of a block, at least
_BLOCKS = 8  # blocks below the trunk of a tree, about at most


@dataclass(frozen=True, slots=True)
class Block:
    """Tokens `[start, end)` attend to tokens `[keys, end)`: causally where it is a `chain`, else by the tree."""

    start: int
    end: int
    keys: int
    chain: bool


@dataclass(frozen=True, slots=True)
class Forest:
    """T packed tokens: their ids, position in the sequence, and end of what is below them; `paths` per sequence."""

    ids: Ints  # [T]
    depth: Ints  # [T]
    until: Ints  # [T]
    paths: list[Ints]  # for each sequence, the places of its tokens
    blocks: tuple[Block, ...]


def common_length(one: Sequence[int] | Ints, other: Sequence[int] | Ints) -> int:
    """Number of tokens that two sequences have in common from the beginning."""
    length = min(len(one), len(other))
    differ = np.not_equal(one[:length], other[:length])
    return int(differ.argmax()) if differ.any() else length


def worth_sharing(common: int, prompt: int, other_prompt: int) -> int:
    """`common`, the tokens that two sequences with prompts of these lengths begin with, or 0 where that is too few."""
    return common if common >= min(_LEAST_SHARED, min(prompt, other_prompt) / 2) else 0


def forest(sequences: Sequence[Sequence[int]], prompts: Sequence[int]) -> Forest:
    """Packs the sequences, each with the length of its prompt (at least 1); those that are equal have one path."""
    arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    paths: list[Ints] = [np.empty(0, np.int64)] * len(arrays)
    ids: list[Ints] = []
    depth: list[Ints] = []
    until = np.empty(sum(len(array) for array in arrays), np.int64)
    roots: list[int] = []
    size = 0
    before, path, before_prompt = np.empty(0, np.int64), np.empty(0, np.int64), 0
    for number in sorted(range(len(arrays)), key=lambda n: list(sequences[n])):
        array = arrays[number]
        shared = worth_sharing(common_length(before, array), before_prompt, prompts[number]) if size else 0
        if shared == 0:
            roots.append(size)
        until[path[shared:]] = size  # what the new sequence does not begin with ends here
        path = np.concatenate([path[:shared], np.arange(size, size + len(array) - shared)])
        ids.append(array[shared:])
        depth.append(np.arange(shared, len(array)))
        size += len(array) - shared
        paths[number], before, before_prompt = path, array, prompts[number]
    until[path] = size
    until = until[:size]
    trees = [*roots, size]
    blocks = tuple(_blocks(until, trees))
    return Forest(np.concatenate(ids), np.concatenate(depth), until, paths, blocks)


def _blocks(until: Ints, bounds: list[int]) -> list[Block]:
    """Blocks that cover all tokens, few and with few keys that a token must not see."""
    blocks: list[Block] = []
    small = -1  # where a block of small trees begins
    for start, end in pairwise(bounds):
        if end - start <= _SMALL:
            small = start if small < 0 else small
            if end - small >= _BLOCK:
                blocks.append(Block(small, end, small, chain=False))
                small = -1
            continue
        if small >= 0:
            blocks.append(Block(small, start, small, chain=False))
            small = -1
        trunk = start + int(np.argmax(until[start:end] < end)) if (until[start:end] < end).any() else end
        if trunk > start:
            blocks.append(Block(start, trunk, start, chain=True))
        count = min(_BLOCKS, -(-(end - trunk) // _BLOCK))
        cuts = np.linspace(trunk, end, count + 1).round().astype(int).tolist() if count else []
        blocks += [Block(a, b, start, chain=False) for a, b in pairwise(cuts)]
    if small >= 0:
        blocks.append(Block(small, bounds[-1], small, chain=False))
    return blocks

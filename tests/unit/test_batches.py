"""Tokens, the plan of batches, and padded micro-batches."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from spftsql.config import ScratchConfig
from spftsql.errors import UserError
from spftsql.records import TrainRow
from spftsql.training.batches import Encoded, accumulation, collate, encode_rows, plan, split
from spftsql.training.scratch import build_scratch_model

ROW = TrainRow("r", "db", "<|user|>how many ?<|assistant|>", "select 1", "select 2 , 3", 1, "label")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    from transformers import AutoTokenizer

    target = tmp_path_factory.mktemp("batches") / "base"
    config = ScratchConfig(hidden_size=16, layers=1, heads=1, intermediate_size=16, vocabulary=320)
    build_scratch_model(config, 64, ["how many ?", "select 1 , 2 , 3"] * 4, target, seed=0)
    return AutoTokenizer.from_pretrained(target)


def rows_of(lengths: list[int], sources: list[str] | None = None) -> list[Encoded]:
    sources = sources or ["label"] * len(lengths)
    return [
        Encoded(str(i), source, [5] * (length - 2), [6, 1], None, None)
        for i, (length, source) in enumerate(zip(lengths, sources, strict=True))
    ]


def test_a_completion_ends_with_one_end_token(tokenizer) -> None:  # type: ignore[no-untyped-def]
    (row,), dropped = encode_rows([ROW], tokenizer, 64, "spft-a")
    assert dropped == 0
    assert tokenizer.decode(row.prompt) == "<|user|> how many ?<|assistant|>"
    assert tokenizer.decode(row.chosen) == " select 1<|end|>"
    assert row.rejected is not None and tokenizer.decode(row.rejected) == " select 2 , 3<|end|>"
    assert row.chosen.count(tokenizer.eos_token_id) == 1
    assert row.length == len(row.prompt) + len(row.rejected)


def test_sft_and_replay_rows_have_no_rejected_completion(tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert encode_rows([ROW], tokenizer, 64, "sft")[0][0].rejected is None
    assert encode_rows([replace(ROW, replay=True)], tokenizer, 64, "spin")[0][0].rejected is None


def test_an_empty_rejected_answer_is_its_end_token(tokenizer) -> None:  # type: ignore[no-untyped-def]
    (row,), _ = encode_rows([replace(ROW, rejected="")], tokenizer, 64, "spin")
    assert row.rejected == [tokenizer.eos_token_id]


def test_overlong_rows_are_dropped_and_counted(tokenizer) -> None:  # type: ignore[no-untyped-def]
    length = encode_rows([ROW], tokenizer, 64, "sft")[0][0].length
    long = replace(ROW, id="long", chosen="select 1 , 2 , 3")
    rows, dropped = encode_rows([ROW, long], tokenizer, length, "sft")
    assert ([row.id for row in rows], dropped) == (["r"], 1)
    with pytest.raises(UserError, match=r"none of the 2 .* raise model\.max_length"):
        encode_rows([ROW, long], tokenizer, 3, "sft")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": ""}, "row r has an empty completion"),
        ({"prompt": ""}, "row r has an empty prompt"),
        ({"rejected": None}, "no rejected answer"),
        ({"reward": None}, "no rejected answer"),
    ],
)
def test_unusable_rows_are_refused(tokenizer, change: dict[str, object], message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=message):
        encode_rows([replace(ROW, **change)], tokenizer, 64, "spin")  # type: ignore[arg-type]


def test_no_rows_are_refused(tokenizer) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="no training rows"):
        encode_rows([], tokenizer, 64, "sft")


def test_the_plan_is_a_function_of_its_arguments() -> None:
    rows = rows_of([10 + i % 7 for i in range(50)])
    assert plan(rows, 12, 8, 1, None) == plan(rows, 12, 8, 1, None)
    assert plan(rows, 12, 8, 1, None) != plan(rows, 12, 8, 2, None)


def test_an_epoch_sees_every_row_once() -> None:
    rows = rows_of(list(range(3, 43)))
    seen = Counter(i for batch in plan(rows, 15, 8, 0, None) for i in batch)
    assert set(seen.values()) == {3} and len(seen) == 40


def test_batches_hold_rows_of_similar_length() -> None:
    rows = rows_of([10 + (i * 37) % 100 for i in range(320)])
    batches = plan(rows, 20, 16, 0, None)
    padded = sum(max(rows[i].length for i in batch) * len(batch) for batch in batches)
    assert padded < 1.1 * sum(rows[i].length for batch in batches for i in batch)
    longest = [rows[batch[0]].length for batch in batches]
    assert longest != sorted(longest)  # they do not come in order of length


@pytest.mark.parametrize(("share", "expected"), [(0.5, 4), (0.3, 2), (0.01, 1), (1.0, 7)])
def test_every_batch_holds_the_share_of_synthetic_rows(share: float, expected: int) -> None:
    sources = ["synthetic" if i % 5 else "label" for i in range(50)]
    rows = rows_of([10] * 50, sources)
    batches = plan(rows, 30, 8, 0, share)
    assert {sum(sources[i] == "synthetic" for i in batch) for batch in batches} == {expected}
    assert all(len(set(batch)) == 8 for batch in batches)


def test_the_share_is_moot_where_one_kind_is_missing() -> None:
    batches = plan(rows_of([10] * 20), 5, 8, 0, 0.5)
    assert [len(batch) for batch in batches] == [8] * 5


@pytest.mark.parametrize(
    ("size", "workers", "micro"), [(16, 1, 16), (16, 2, 4), (5, 2, 2), (3, 2, 1), (7, 3, 16), (1, 2, 8)]
)
def test_a_batch_is_divided_without_loss(size: int, workers: int, micro: int) -> None:
    parts = split(list(range(size)), workers, micro)
    assert len(parts) == workers
    assert {len(passes) for passes in parts} == {accumulation(size, workers, micro)}
    assert sorted(i for passes in parts for rows in passes for i in rows) == list(range(size))
    assert max(len(rows) for passes in parts for rows in passes) <= micro


def test_collate_lists_the_tokens_to_score() -> None:
    rows = [
        Encoded("a", "label", [10, 11], [20, 1], [30, 31, 1], 1),
        Encoded("b", "label", [12], [21, 22, 1], None, None),  # a replay row
    ]
    micro = collate(rows, pad_id=0, with_prompt=False)
    assert micro.input_ids.tolist() == [[10, 11, 20, 1, 0], [12, 21, 22, 1, 0], [10, 11, 30, 31, 1]]
    assert micro.target.tolist() == [20, 1, 21, 22, 1, 30, 31, 1]
    assert micro.sequence.tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    assert micro.input_ids.flatten()[micro.position].tolist() == [11, 20, 12, 21, 22, 11, 30, 31]
    assert (micro.row.tolist(), micro.is_rejected.tolist()) == ([0, 1, 0], [False, False, True])
    with_prompt = collate(rows[:1], pad_id=0, with_prompt=True)
    assert with_prompt.target.tolist() == [11, 20, 1, 11, 30, 31, 1]
    assert with_prompt.in_prompt.tolist() == [True, False, False, True, False, False, False]

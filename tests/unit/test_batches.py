"""Tokens, the plan of batches, and padded micro-batches."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from spftsql.config import ScratchConfig
from spftsql.errors import UserError
from spftsql.records import TrainRow
from spftsql.training.batches import Encoded, Sharing, collate, encode_rows, plan, split
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


def schema_rows(schemas: int, questions: int, schema_length: int = 200) -> list[Encoded]:
    rows = []
    for schema in range(schemas):
        for question in range(questions):
            prompt = [7, *[100 + schema] * schema_length, *range(10, 14 + question % 5), question + 50]
            rows.append(Encoded(f"{schema}/{question}", "label", prompt, [20, 21, 1], [20, 22, 23, 1], 1))
    return rows


def test_questions_of_one_schema_meet() -> None:
    rows = schema_rows(schemas=16, questions=8)
    for together, schemas_of_a_batch in ((8, 2), (4, 4)):
        for batch in plan(rows, 8, 16, 0, None, together):
            counts = Counter(rows[i].id.split("/")[0] for i in batch)
            assert sum(counts.values()) == 16 and set(counts.values()) == {16 // schemas_of_a_batch}
    spread = [len({rows[i].id.split("/")[0] for i in batch}) for batch in plan(rows, 8, 16, 0, None, 1)]
    assert sum(spread) / len(spread) > 4
    seen = Counter(i for batch in plan(rows, 16, 16, 3, None, 8) for i in batch)
    assert set(seen.values()) == {2}  # an epoch is an epoch, grouped or not


@pytest.mark.parametrize("sharing", ["tree", "none"])
@pytest.mark.parametrize(
    ("size", "workers", "micro"), [(16, 1, 16), (16, 2, 4), (5, 2, 2), (3, 2, 1), (7, 3, 16), (1, 2, 8)]
)
def test_a_batch_is_divided_without_loss(size: int, workers: int, micro: int, sharing: Sharing) -> None:
    rows = schema_rows(schemas=4, questions=5)
    batch = list(range(size))
    parts = split(rows, batch, workers, micro, 10**6, sharing)
    assert len(parts) == workers
    assert len({len(passes) for passes in parts}) == 1
    assert sorted(i for passes in parts for rows in passes for i in rows) == batch
    assert max(len(rows) for passes in parts for rows in passes) <= micro
    assert len(parts[0]) == -(-size // (workers * micro))  # no more passes than there must be
    assert split(rows, batch[::-1], workers, micro, 10**6, sharing) == parts or sharing == "none"


@pytest.mark.parametrize("sharing", ["tree", "none"])
@pytest.mark.parametrize("budget", [300, 900, 2000])
def test_a_pass_computes_no_more_tokens_than_it_may(budget: int, sharing: Sharing) -> None:
    rows = schema_rows(schemas=5, questions=6)
    single = 2 * rows[0].length + 20
    for workers in (1, 2):
        parts = split(rows, list(range(30)), workers, 30, budget, sharing)
        passes = [piece for worker in parts for piece in worker if piece]
        computed = [collate([rows[i] for i in piece], 0, False, sharing).computed for piece in passes]
        assert all(
            cost <= budget or (len(piece) == 1 and cost <= single) for cost, piece in zip(computed, passes, strict=True)
        )
        if sharing == "tree" and budget == 900:  # five schemas of 200 tokens, and little beside each
            assert sum(computed) < 5 * 200 + 30 * 20 + 200 * len(passes)


def test_the_passes_of_a_batch_cost_alike() -> None:
    rows = [Encoded(str(n), "label", [n] * 98, [6, 1], None, None) for n in range(10)]
    (passes,) = split(rows, list(range(10)), 1, 10, 800, "tree")
    assert [len(piece) for piece in passes] == [5, 5]  # not 8 and 2


def test_samples_of_one_question_weigh_as_one(tokenizer) -> None:  # type: ignore[no-untyped-def]
    rows = [replace(ROW, id=f"a{n}", rejected=f"select {n + 1} , 3") for n in range(3)]
    rows += [replace(ROW, id="b", chosen="select 2"), replace(ROW, id="c", replay=True)]
    by_pair, _ = encode_rows(rows, tokenizer, 64, "spin")
    assert [row.weight for row in by_pair] == [1.0] * 5
    by_question, _ = encode_rows(rows, tokenizer, 64, "spin", "question")
    assert [row.weight for row in by_question] == pytest.approx([2 / 3] * 3 + [2.0, 1.0])


def test_collate_lists_the_tokens_to_score() -> None:
    rows = [
        Encoded("a", "label", [10, 11], [20, 1], [30, 31, 1], 1),
        Encoded("b", "label", [12], [21, 22, 1], None, None),  # a replay row
    ]
    micro = collate(rows, 0, False, "none")
    assert micro.input_ids.tolist() == [[10, 11, 20, 1, 0], [12, 21, 22, 1, 0], [10, 11, 30, 31, 1]]
    assert micro.target[micro.scored].tolist() == [20, 1, 21, 22, 1, 30, 31, 1]
    assert micro.sequence.tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    assert micro.input_ids.flatten()[micro.position[micro.scored]].tolist() == [11, 20, 12, 21, 22, 11, 30, 31]
    assert (micro.row.tolist(), micro.is_rejected.tolist()) == ([0, 1, 0], [False, False, True])
    with_prompt = collate(rows[:1], 0, True, "none")
    assert with_prompt.target[with_prompt.scored].tolist() == [11, 20, 1, 11, 30, 31, 1]
    assert with_prompt.in_prompt.tolist() == [True, False, False, True, False, False, False]


def test_what_is_shared_is_computed_and_scored_once() -> None:
    rows = [
        Encoded("a", "label", [10, 11], [20, 21, 1], [20, 31, 1], 1),
        Encoded("b", "label", [10, 11], [20, 21, 1], [20, 21, 1], 0),  # a right answer, word for word
    ]
    micro = collate(rows, 0, False, "tree")
    assert micro.input_ids.tolist() == [[10, 11, 20, 21, 1, 31, 1]]
    assert micro.depth is not None and micro.depth.tolist() == [0, 1, 2, 3, 4, 3, 4]
    assert micro.until is not None and micro.until.tolist() == [7, 7, 7, 5, 5, 7, 7]
    assert micro.target.tolist() == [20, 21, 1, 31, 1]
    assert micro.position.tolist() == [1, 2, 3, 2, 5]
    assert micro.target[micro.scored].tolist() == [20, 21, 1] * 2 + [20, 31, 1] + [20, 21, 1]
    assert micro.sequence.tolist() == [s for s in range(4) for _ in range(3)]

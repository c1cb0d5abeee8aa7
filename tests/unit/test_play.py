"""Who plays whom, which pairs a mode trains on, and what the gate says of the outcome."""

from dataclasses import replace
from typing import Any

import pytest

from spftsql.config import SelfPlayConfig
from spftsql.records import Example, Mode, Sample, TrainRow, Verdict
from spftsql.selfplay.candidates import Answer, Candidate, accuracy
from spftsql.selfplay.gate import decide
from spftsql.selfplay.play import play_rows
from spftsql.selfplay.players import opponents_of, strongest
from spftsql.selfplay.table import Result, markdown, method_row

M0, M1, M2 = (Candidate(name, f"models/{name}", name) for name in ("m0", "m1", "m2"))
SCORES = {"m0": 0.2, "m1": 0.5, "m2": 0.4}


def answer(index: int, status: str, candidate: str = "m0") -> Answer:
    example = Example(str(index), "shop", f"question {index}", "SELECT 1", "synthetic", "t")
    verdict = Verdict(str(index), "shop", status, "", 1.0, 1, False, "d", "sqlite")
    return Answer(example, candidate, f"SELECT {index}", f"SELECT {index}", verdict)


def sql_row(example: Example) -> TrainRow:
    return TrainRow(example.id, example.db_id, example.question, example.sql, None, None, example.source)


def test_main_is_the_best_and_the_opponent_the_weakest() -> None:
    assert strongest([M0, M1, M2], SCORES) == M1
    assert opponents_of("spft-a", choice("weakest"), M1, [M0, M1, M2], SCORES) == [M0]
    assert opponents_of("spft-b", choice("previous"), M1, [M0, M1, M2], SCORES) == [M1]
    assert opponents_of("spft-a", choice("base"), M1, [M0, M1, M2], {**SCORES, "m0": 0.9}) == [M0]


def choice(opponent: str, **more: Any) -> SelfPlayConfig:
    return SelfPlayConfig.model_validate({"opponent": opponent, **more})


def test_a_pool_goes_from_the_weakest_to_the_strongest() -> None:
    many = [Candidate(f"m{i}", f"models/m{i}", f"m{i}") for i in range(5)]
    scores = {"m0": 0.3, "m1": 0.1, "m2": 0.5, "m3": 0.4, "m4": 0.2}  # m1, m4, m0, m3, m2

    def pool(size: int, of: list[Candidate]) -> list[str]:
        return [one.name for one in opponents_of("spft-a", choice("pool", pool=size), many[2], of, scores)]

    assert pool(3, many) == ["m1", "m0", "m2"]
    assert pool(2, many) == ["m1", "m2"]
    assert pool(9, many) == ["m1", "m4", "m0", "m3", "m2"]
    assert pool(3, many[:1]) == ["m0"]


def test_among_equals_main_is_the_newest_and_the_opponent_the_oldest() -> None:
    level = dict.fromkeys(SCORES, 0.3)
    assert strongest([M0, M1, M2], level) == M2
    assert opponents_of("spft-a", choice("weakest"), M2, [M0, M1, M2], level) == [M0]
    assert opponents_of("spft-a", choice("weakest"), M0, [M0], level) == [M0]  # alone it plays against itself


def test_spin_and_dpo_play_against_the_main_model_whatever_the_choice() -> None:
    for mode in ("spin", "dpo"):
        assert opponents_of(mode, choice("weakest"), M1, [M0, M1, M2], SCORES) == [M1]


STATUSES = ["equal", "different", "error", "timeout", "truncated", "unverifiable"]


@pytest.mark.parametrize(
    ("mode", "rewards"),
    [
        ("spin", [1, 1, 1, 1, 1, 1]),
        ("dpo", [1, 1]),
        ("spft-a", [0, 1, 1]),
        ("spft-b", [1, 1]),
        ("sft", [None] * 6),
    ],
)
def test_each_mode_takes_its_own_pairs(mode: Mode, rewards: list[int | None]) -> None:
    rows, left_out = play_rows(mode, [answer(i, status) for i, status in enumerate(STATUSES)], sql_row)
    assert [row.reward for row in rows] == rewards
    assert len(rows) + sum(left_out.values()) == len(STATUSES)
    assert all((row.rejected is None) == (mode == "sft") for row in rows)


def test_only_execution_decides_what_is_wrong() -> None:
    _, left_out = play_rows("spft-a", [answer(0, "timeout"), answer(1, "unverifiable")], sql_row)
    assert left_out == {"timeout": 1, "unverifiable": 1}


def outcomes(right: str, candidate: str) -> list[Answer]:
    return [answer(i, "equal" if mark == "1" else "different", candidate) for i, mark in enumerate(right)]


@pytest.mark.parametrize(
    ("new", "old", "outcome"),
    [
        ("1" * 10, "0" * 10, "better"),
        ("0" * 10, "1" * 10, "worse"),
        ("1" * 10, "1" * 10, "undecided"),
        ("1111100000", "0000000000", "undecided"),  # 5 against 0: p = .0625
        ("1111110000", "0000000000", "better"),  # 6 against 0: p = .03125
    ],
)
def test_the_gate_has_three_outcomes(new: str, old: str, outcome: str) -> None:
    assert decide(outcomes(new, "new"), outcomes(old, "old"), alpha=0.05).outcome == outcome


def test_an_undecided_gate_says_how_many_more_questions_would_decide() -> None:
    decision = decide(outcomes("1111100000", "new"), outcomes("0000000000", "old"), alpha=0.05)
    assert decision.more is not None and 0 < decision.more <= 10
    assert f"about {decision.more} more questions would decide. old stays." in decision.sentence()
    few = decide(outcomes("11111", "new"), outcomes("00000", "old"), alpha=0.05)
    assert few.too_small and "fewer than 6 questions cannot decide at p < 0.05. old stays." in few.sentence()
    same = decide(outcomes("1100", "new"), outcomes("1100", "old"), alpha=0.05)
    assert same.more is None and "would decide" not in same.sentence()


def test_the_table_shows_n_interval_and_the_gate() -> None:
    new, old = outcomes("1" * 30 + "0" * 10, "new"), outcomes("1" * 20 + "0" * 20, "old")
    rows = (method_row("control", "old", old, None), method_row("+ VBI-FT", "new", new, old))
    result = Result(rows, (decide(new, old, 0.05),), "new", "models/new", {"shop": "shop.sqlite"})
    text = markdown(result, "shop")
    assert "| + VBI-FT | 0.750 | 0.598 – 0.858 | 30 / 40 |" in text
    assert "better" in text and "n = 40" in text
    assert Result.from_json(result.to_json()) == result


def test_what_engines_could_not_answer_counts_for_nobody() -> None:
    """A request that kills engines says nothing about the model: it is neither wrong, nor a mistake to train on."""
    fault = "set aside: the engine failed 4 times with this request: killed"
    assert Sample("1", "shop", "m", 0, "", 0, "error", fault).fault == fault
    assert Sample("1", "shop", "m", 0, "", 0, "error", "the prompt is too long").fault is None

    def lost(index: int, candidate: str = "m0") -> Answer:
        found = answer(index, "unverifiable", candidate)
        return replace(found, verdict=replace(found.verdict, fault=fault))

    answers = [answer(0, "equal"), lost(1), answer(2, "different")]
    assert accuracy(answers) == 0.5
    for mode in ("spin", "dpo", "spft-a", "spft-b"):
        rows, left_out = play_rows(mode, answers, sql_row)
        assert lost(1).example.id not in {row.id.split("/")[0] for row in rows}
        assert left_out["fault"] == 1
    control = [answer(0, "different"), answer(1, "equal"), lost(2)]
    row = method_row("m", "m1", answers, control)
    assert (row.n, row.correct, row.accuracy) == (2, 1, 0.5)
    assert row.verdicts == {"equal": 1, "fault": 1, "different": 1}
    assert decide(answers, control, 0.05).n == 1

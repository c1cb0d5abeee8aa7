"""Which question a statement gets, which pairs leak, and which set a pair goes into."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spftsql.config import VbiConfig
from spftsql.errors import UserError
from spftsql.records import Example, Filter
from spftsql.selfplay.leaks import find_leaks, ngrams
from spftsql.selfplay.questions import Phrasing, Vote, choose
from spftsql.selfplay.splits import later_set, split_pairs

# A mark for each vote: = the SQL's result, a and b two other ones, e an error, t a timeout.
STATUS = {"=": "equal", "a": "different", "b": "different", "e": "error", "t": "timeout"}


def phrasing(votes: str, missing: tuple[str, ...] = (), text: str = "which?") -> Phrasing:
    return Phrasing(text, missing, tuple(Vote("SELECT", STATUS[mark], mark, 1.0) for mark in votes))


@pytest.mark.parametrize(
    ("votes", "agreement", "disagreement"),
    [("====", 1.0, 0.0), ("==ab", 0.5, 0.25), ("aab=", 0.25, 0.5), ("eeee", 0.0, 0.0), ("tt=a", 0.5, 0.5)],
)
def test_vote_shares(votes: str, agreement: float, disagreement: float) -> None:
    assert (phrasing(votes).agreement, phrasing(votes).disagreement) == (agreement, disagreement)


def test_votes_that_say_nothing_leave_agreement_unknown() -> None:
    assert phrasing("tttt").agreement is None is phrasing("").agreement


@pytest.mark.parametrize(
    ("how", "candidates", "index"),
    [
        ("none", ["aaaa", "===="], 0),
        ("round_trip", ["aaaa", "==ab", "===="], 1),
        ("round_trip", ["aaa=", "tttt"], None),
        ("ranked", ["a===", "====", "===="], 1),
        ("ranked", ["aaaa", "tttt"], 0),
        ("confident_disagreement", ["aaa=", "===="], 1),
        ("confident_disagreement", ["aab="], None),
        ("confident_disagreement", ["aa=="], 0),  # it agrees as often with the SQL
        ("confident_disagreement", ["abe="], 0),  # it does not know, which is no reason to drop
        ("confident_disagreement", ["eeee"], 0),
        ("confident_disagreement", ["tttt"], 0),
    ],
)
def test_each_filter_chooses_in_its_own_way(how: Filter, candidates: list[str], index: int | None) -> None:
    choice = choose([phrasing(votes) for votes in candidates], how, 0.5)
    assert choice.index == index
    assert (choice.reason == "") == (index is not None)


@pytest.mark.parametrize("how", ["none", "round_trip", "ranked", "confident_disagreement"])
def test_a_question_that_leaves_a_value_out_is_never_chosen(how: Filter) -> None:
    assert choose([phrasing("====", ("texas",)), phrasing("====")], how, 0.5).index == 1
    assert choose([phrasing("====", ("texas",))], how, 0.5).reason == "a value is not said"
    assert choose([], how, 0.5).reason == choose([phrasing("", text="")], how, 0.5).reason == "no question"


@pytest.mark.parametrize("how", ["none", "round_trip", "ranked", "confident_disagreement"])
def test_a_text_that_is_no_question_is_never_chosen(how: Filter) -> None:
    remark = replace(phrasing("====", text="SELECT 1"), asks=False)
    assert choose([remark, phrasing("====")], how, 0.5).index == 1
    assert choose([remark], how, 0.5).reason == "no question"


def pair(number: int, db_id: str = "shop", template: str = "t", question: str = "", sql: str = "s") -> Example:
    return Example(f"synthetic/1/{number}", db_id, question or f"question {number}", sql, "synthetic", template)


def leaks(question: str, held: str, sql: str = "s", held_sql: str = "s", db_id: str = "shop") -> bool:
    pairs, held_out = [pair(0, question=question, sql=sql)], [pair(1, db_id, question=held, sql=held_sql)]
    return bool(find_leaks(pairs, held_out, lambda example: example.sql, 0.8))


def test_what_repeats_a_held_out_question_leaks() -> None:
    held = "what are the names of all rivers that run through texas and ohio ?"
    assert leaks("What are the names of all rivers that run through Texas and Ohio?", held)
    assert leaks("what are the names of all rivers that run through texas and ohio ?", held, sql="other")
    near = "so what are the names of all rivers that run through texas and ohio ?"
    assert leaks(near, held)
    assert not leaks(near, held, sql="other")
    assert not leaks("what are the names of all rivers that run through utah and iowa ?", held)  # a label may be so
    assert not leaks(held, held, db_id="another")
    assert leaks("how big", "How big?") and not leaks("how big", "how long")


@pytest.mark.parametrize(
    ("question", "held"),
    [
        ("在东京有多少家公司在二零一零年成立了", "在东京有多少家公司在二零一零年成立"),
        ("東京で一番大きい会社はどこですかね", "東京で一番大きい会社はどこですか"),
        ("บริษัทใดใหญ่ที่สุดในกรุงเทพฯบ้าง", "บริษัทใดใหญ่ที่สุดในกรุงเทพฯ"),
    ],
)
def test_questions_without_blanks_are_alike_by_their_characters(question: str, held: str) -> None:
    assert leaks(question, held)
    assert not leaks(question, held, sql="other")
    assert not leaks(question, held[len(held) // 2 :])


def test_the_same_telling_sql_leaks_in_whatever_words() -> None:
    held = [pair(1, question="what is the capital of the smallest state", sql="s1"), pair(2, question="x", sql="s2")]
    words = "name the town that governs the tiniest region"
    found = [
        pair(3, question=words, sql="s1"),
        pair(4, question=words, sql="s3"),
        pair(5, "zoo", question="y", sql="s1"),
    ]
    (leak,) = find_leaks(found, held, lambda example: example.sql, 0.8, lambda example: example.sql)
    assert (leak.pair, leak.held_out, leak.same_sql, leak.overlap) == ("synthetic/1/3", "synthetic/1/1", True, 0.0)
    assert leak.sentence().endswith("(the same SQL)")
    assert not find_leaks(found, held, lambda example: example.sql, 0.8)


def test_a_leak_names_what_it_is_most_like() -> None:
    held = [pair(1, question="name all of the rivers here"), pair(2, question="name all of the rivers there")]
    (leak,) = find_leaks([pair(0, question="name all of the rivers there")], held, lambda e: e.sql, 0.3)
    assert (leak.held_out, leak.overlap) == ("synthetic/1/2", 1.0)
    assert "repeats synthetic/1/2 'name all of the rivers there'" in leak.sentence()


@given(st.text(), st.text())
def test_overlap_is_about_words(one: str, other: str) -> None:
    assert ngrams(one) == ngrams(one.upper().lower()) or not one.isascii()
    assert bool(ngrams(one) & ngrams(other)) == bool(ngrams(other) & ngrams(one))


CONFIG = VbiConfig(train_pairs=60, play_pairs=20, selection_pairs=20)


def test_sets_share_no_pair_and_no_selection_template() -> None:
    pairs = [pair(n, template=f"t{n % 10}") for n in range(100)]
    sets = split_pairs(pairs, CONFIG, seed=1)
    assert (len(sets.train), len(sets.play), len(sets.selection)) == (60, 20, 20)
    assert not {p.template for p in sets.selection} & {p.template for p in (*sets.train, *sets.play)}
    assert set(sets.parts) == {p.id for p in pairs} and Counter(sets.parts.values())["selection"] == 20
    assert sets == split_pairs(pairs, CONFIG, seed=1) and not sets.databases


def test_with_several_databases_some_are_for_selection_alone() -> None:
    pairs = [pair(n, db_id=f"db{n % 8}", template=f"t{n % 25}") for n in range(400)]
    sets = split_pairs(pairs, CONFIG, seed=2)
    learned = (*sets.train, *sets.play)
    assert sets.databases and not sets.databases & {p.db_id for p in learned}
    assert sets.templates and not sets.templates & {p.template for p in learned}
    assert {p.db_id for p in sets.selection} & sets.databases
    assert len(sets.train) == 60


def test_one_large_template_is_not_held_out_where_small_ones_are() -> None:
    pairs = [pair(n, template="large" if n % 10 else f"t{n}") for n in range(200)]
    for seed in range(5):
        assert "large" not in split_pairs(pairs, CONFIG, seed).templates


def test_one_template_is_no_selection_set() -> None:
    with pytest.raises(UserError, match=r"all synthetic pairs \(3\) come from one template,.*synthesis.library=0.5"):
        split_pairs([pair(n) for n in range(3)], CONFIG, seed=0)


def test_later_rounds_are_for_training() -> None:
    sets = later_set([pair(n) for n in range(100)], CONFIG)
    assert (len(sets.train), sets.play, sets.selection) == (60, (), ())

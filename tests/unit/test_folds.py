"""Labels that decide in folds: each is asked once, by models that have not seen it."""

from __future__ import annotations

from typing import Any

import pytest

from spftsql.config import GateConfig
from spftsql.errors import UserError
from spftsql.records import Example, Verdict
from spftsql.selfplay.candidates import Answer, Candidate
from spftsql.selfplay.gate import decide
from spftsql.selfplay.lines import Line
from spftsql.selfplay.players import Players
from spftsql.selfplay.settling import Played, gate_answers
from spftsql.selfplay.splits import label_folds

LABELS = [Example(f"l{i}", "shop", f"question {i}", "SELECT 1", "label", "t") for i in range(11)]


def gate(**settings: Any) -> GateConfig:
    return GateConfig.model_validate(settings)


def test_every_label_is_in_one_fold() -> None:
    folds = label_folds(LABELS, gate(folds=3), seed=1)
    assert sorted(len(fold) for fold in folds) == [3, 4, 4]
    assert sorted(label.id for fold in folds for label in fold) == sorted(label.id for label in LABELS)
    assert folds == label_folds(LABELS, gate(folds=3), seed=1) != label_folds(LABELS, gate(folds=3), seed=2)
    assert label_folds(LABELS, gate(), 1) == label_folds(LABELS, gate(folds=3, enabled=False), 1) == []
    with pytest.raises(UserError, match=r"gate\.folds=6 needs 12 labels at least; there are 11"):
        label_folds(LABELS, gate(folds=6), seed=1)


def played(suffix: str, questions: list[Example], right: bool) -> Played:
    first, later = Candidate("sft", f"sft{suffix}", "k"), Candidate(f"vbi{suffix}", f"vbi{suffix}", "k")
    verdict = Verdict("", "shop", "equal" if right else "different", "", 1.0, 1, False, "d", "sqlite")
    answers = {
        one.name: {"gate": [Answer(question, one.name, "", "", verdict) for question in questions]}
        for one in (first, later)
    }
    return Played(Players({}, [first, later], answers), first, None, [later], {})


def test_the_gate_gets_every_folds_answers_under_the_names_of_the_final_candidates() -> None:
    final, folds = played("-1", LABELS[:1], True), [played("-a", LABELS[1:3], False), played("-b", LABELS[3:4], True)]
    found = gate_answers(final, folds, "spft-a")
    assert [answer.example.id for answer in found["vbi-1"]] == ["l0", "l1", "l2", "l3"]
    assert [answer.correct for answer in found["vbi-1"]] == [True, False, False, True]
    assert {answer.candidate for answer in found["vbi-1"]} == {"vbi-1"}
    assert [answer.example.id for answer in found["sft"]] == ["l0", "l1", "l2", "l3"]
    assert gate_answers(final, [], "spft-a") == final.players.of("gate")


def played_on(suffix: str, questions: list[Example], *, trained: bool) -> Played:
    """VBI-FT is right about every fifth label, the labels alone about none; self-play is right about all, if it ran."""
    first, later = Candidate("sft", f"sft{suffix}", "k"), Candidate("vbi-1", f"vbi{suffix}", "k")
    kept = Candidate("spft-b-1", f"play{suffix}", "k") if trained else later
    answers = {}
    for candidate in dict.fromkeys((first, later, kept)):
        right = [candidate != first and (candidate != later or int(q.id[1:]) % 5 == 0) for q in questions]
        answers[candidate.name] = {
            "gate": [
                Answer(q, candidate.name, "", "", Verdict("", "shop", status, "", 1.0, 1, False, "d", "sqlite"))
                for q, good in zip(questions, right, strict=True)
                for status in ["equal" if good else "different"]
            ]
        }
    line = Line("spft-b", [first, later], kept, kept, "" if trained else "made no usable mistakes")
    return Played(Players({}, [first, later], answers), first, None, [later], {"spft-b": line})


@pytest.mark.parametrize("folds_trained", [True, False])
def test_a_candidate_that_self_play_kept_as_it_was_is_asked_once(folds_trained: bool) -> None:
    final = played_on("", [], trained=False)
    folds = [played_on(f"-{k}", LABELS[k * 5 : k * 5 + 5], trained=folds_trained) for k in range(2)]
    found = gate_answers(final, folds, "spft-b")
    assert [answer.example.id for answer in found["vbi-1"]] == [f"l{i}" for i in range(10)]
    decision = decide(found["vbi-1"], found["sft"], alpha=0.05)
    assert (decision.n, decision.only_challenger, decision.outcome) == (10, 2, "undecided")


def test_the_gate_does_not_take_a_question_twice() -> None:
    answers = played_on("", LABELS[:3], trained=False).players.of("gate")
    with pytest.raises(ValueError, match="l0"):
        decide([*answers["vbi-1"], answers["vbi-1"][0]], answers["sft"], alpha=0.05)

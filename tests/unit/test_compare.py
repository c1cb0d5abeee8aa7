"""The table of `spftsql compare`: what is paired with what, and what a person who asks for nonsense is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spftsql.comparison import measuring
from spftsql.comparison.measuring import Measured, Method, chosen_methods, config_of, measure
from spftsql.comparison.table import cells, markdown, method_rows, notes_of, tree
from spftsql.config import Config
from spftsql.errors import UserError
from spftsql.evaluation.metrics import fewest_to_decide, mcnemar, mean_interval
from spftsql.progress import Reporter
from spftsql.recipes import resolve
from spftsql.selfplay.gate import Decision
from spftsql.selfplay.table import Result, Row


def marks(text: str) -> dict[str, bool]:
    return {f"q{i}": mark == "1" for i, mark in enumerate(text)}


def measured(
    method: Method, seed: int, right: str, start: str, served: str = "", outcome: str = "undecided"
) -> Measured:
    decision = Decision(method, "sft", outcome, 1, 0, 10, 0.5, None)  # type: ignore[arg-type]
    return Measured(
        method, seed, f"{method}-1", marks(right), marks(start), "vbi-1", Path("m"), marks(served or start), decision
    )


START = ["1111100000", "1111000000"]
TABLE = [
    *(measured("vbi", seed, START[seed], START[seed]) for seed in (0, 1)),
    measured("sft", 0, "1111110000", START[0]),
    measured("sft", 1, "1111100000", START[1]),
    measured("spft-a", 0, "0111111110", START[0], "0111111110", "better"),
    measured("spft-a", 1, "1111111000", START[1]),
]


def test_methods_are_paired_with_the_start_and_the_control_by_question_and_seed() -> None:
    vbi, sft, spft = method_rows(TABLE)
    assert (vbi.accuracy.value, sft.accuracy.value, spft.accuracy.value) == pytest.approx((0.45, 0.55, 0.75))
    assert (spft.start.only_method, spft.start.only_other) == (7, 1)
    assert (
        spft.start.gain.value == pytest.approx(0.3)
        and spft.start.p == mcnemar([True] * 7 + [False], [False] * 7 + [True]).p
    )
    assert spft.control and (spft.control.only_method, spft.control.only_other) == (5, 1)
    assert spft.control.gain.value == pytest.approx(0.2)
    assert (vbi.start.only_method, vbi.start.only_other, sft.control) == (0, 0, None)
    assert spft.gate == {"better": 1, "undecided": 1} and spft.served == pytest.approx((0.8 + 0.4) / 2)
    assert [row["against_control"]["only_method"] for row in spft.seeds] == [3, 2]
    assert "against_control" not in sft.seeds[0]


def test_the_interval_is_over_seeds_and_of_the_questions_where_there_is_one() -> None:
    vbi, _, spft = method_rows(TABLE)
    assert (vbi.accuracy.low, vbi.accuracy.high) == (0.0, 1.0)  # 0.45 and 12.706 · 0.05 to either side
    assert (spft.accuracy.low, spft.accuracy.high) == pytest.approx((0.75 - 12.706 * 0.05, 1.0))
    (one,) = method_rows(TABLE[:1])
    assert (one.accuracy.low, one.accuracy.high) == pytest.approx((0.237, 0.763), abs=1e-3)  # Wilson, 5 of 10
    assert cells(one) == ("vbi", "0.500 0.237–0.763", "–", "–", "undecided", "0.500")


@pytest.mark.parametrize(("kept", "asked"), [("vbi-1", None), ("spft-a-1", "better")])
def test_the_gates_word_is_about_the_candidate_that_is_shown(
    kept: str, asked: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a collapse the gate decides about what self-play began with; that says nothing of the collapsed model."""

    def finished(config: Config, report: Reporter, shared: Path) -> Result:
        names = ("sft", "vbi-1", "spft-a-1")
        decision = Decision(kept, "sft", "better", 25, 5, 100, 0.0003, None)
        rows = tuple(Row(name, name, 100, 50, 0.5, 0.4, 0.6, None, {}) for name in names)
        folder = config.run_dir / config.name
        folder.mkdir(parents=True)
        outcomes = {"exam": "test", "start": "vbi-1", "right": dict.fromkeys(names, marks("10"))}
        (folder / "outcomes.json").write_text(json.dumps(outcomes))
        return Result(rows, (decision,), kept, "/m", {})

    monkeypatch.setattr(measuring, "run", finished)
    (found,) = measure(resolve("demo", [f"run_dir={tmp_path}"]), ["spft-a"], [0], Reporter())
    assert found.candidate == "spft-a-1" and found.served_candidate == kept
    assert (found.decision.outcome if found.decision else None) == asked
    assert cells(method_rows([found])[0])[4] == (asked or "not asked")


def test_answers_with_a_fault_are_in_no_pair() -> None:
    lost = measured("spft-a", 0, "0111111110", START[0])
    known = {name: mark for name, mark in lost.right.items() if name != "q9"}
    row = method_rows([TABLE[2], Measured(**{**vars(lost), "right": known})])[1]
    assert row.accuracy.value == pytest.approx(8 / 9)
    assert row.control and (row.control.only_method, row.control.only_other) == (3, 1)


def test_the_notes_say_what_was_not_measured_and_what_ended_early() -> None:
    text = " ".join(notes_of(TABLE, "test"))
    assert "10 test questions, seeds 0, 1" in text and "not measured" not in text
    stopped = Measured(**{**vars(TABLE[4]), "notes": ("SPFT-SQL: m0 made no usable mistakes",)})
    text = " ".join(notes_of([TABLE[0], stopped], "test"))
    assert "The control was not measured" in text and "Seed 0: SPFT-SQL: m0 made no usable mistakes." in text


def test_json_and_markdown_hold_the_same_figures() -> None:
    found = json.loads(json.dumps(tree(TABLE, "test")))
    assert [row["method"] for row in found["methods"]] == ["vbi", "sft", "spft-a"]
    assert found["methods"][2]["control"]["gain"]["value"] == pytest.approx(0.2)
    text = markdown(TABLE, "test", "shop")
    assert "| spft-a | 0.750 0.115–1.000 | +0.300, p 0.07 +0." in text and "| better 1, undecided 1 | 0.600 |" in text


def test_methods_are_read_from_a_list() -> None:
    assert chosen_methods("spin, vbi,spin") == ["spin", "vbi"]
    for text, message in (("spin,grpo", "unknown method grpo; use some of sft,vbi"), (" ,", "--methods is empty")):
        with pytest.raises(UserError, match=message):
            chosen_methods(text)


def test_methods_differ_by_their_mode_alone(tmp_path: Path) -> None:
    config = resolve("geoquery", [f"run_dir={tmp_path}", "storage=s3://b/runs?region=x", "seed=3"])
    spin, vbi = config_of(config, "spin", 4), config_of(config, "vbi", 4)
    assert (spin.selfplay.mode, spin.selfplay.baselines, spin.seed, spin.name) == ("spin", (), 4, "spin")
    assert (vbi.selfplay.iterations, vbi.run_dir) == (0, tmp_path / "geoquery-compare" / "seed-4")
    assert spin.storage == "s3://b/runs/geoquery-compare/seed-4?region=x"
    same = {"selfplay": config.selfplay, "name": "", "run_dir": tmp_path, "storage": None, "seed": 3}
    assert spin.model_copy(update=same) == config.model_copy(update=same)


@pytest.mark.parametrize("setting", ["vbi.rounds=0", "selfplay.iterations=0", "vbi.play_pairs=0"])
def test_a_recipe_without_self_play_has_nothing_to_compare(setting: str, tmp_path: Path) -> None:
    config = resolve("demo", [f"run_dir={tmp_path}", setting])
    with pytest.raises(UserError, match="compare needs VBI-FT"):
        next(measure(config, ["vbi"], [0], Reporter()))


def test_student_and_the_smallest_set_that_can_decide() -> None:
    assert mean_interval([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((3.0, 1.037, 4.963), abs=1e-3)
    assert mean_interval([2.0])[1:] == (-float("inf"), float("inf"))
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])
    assert [fewest_to_decide(alpha) for alpha in (0.05, 0.01, 0.5)] == [6, 8, 3]

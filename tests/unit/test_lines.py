"""Self-play at its edges: who is trained on what, what stops a line, and that every line is its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from spftsql.errors import UserError
from spftsql.recipes import validate
from spftsql.records import Example, Mode, TrainRow, Verdict
from spftsql.selfplay import lines as lines_module
from spftsql.selfplay.candidates import NEAR_MISS, Answer, Candidate, Exam, Training
from spftsql.selfplay.guards import collapse, saturation
from spftsql.selfplay.lines import Line, self_play
from spftsql.selfplay.players import Players
from spftsql.selfplay.quarantine import contradicted, quarantine_lines
from spftsql.selfplay.settling import list_contradictions
from spftsql.selfplay.stages import Stages

LABELS = [Example("label-1", "shop", "what are all of the cities ?", "SELECT name FROM city", "label", "t")]
SELECTION = [Example(f"s{i}", "shop", f"selection {i}", f"SELECT {i}", "synthetic", "t") for i in range(20)]
PLAY = [Example(f"p{i}", "shop", f"play {i}", f"SELECT {i}", "synthetic", "t") for i in range(4)]
RIGHT = {"=": "equal", "x": "different", "e": "error", "t": "timeout", "u": "unverifiable"}


def answered(candidate: str, questions: Sequence[Example], marks: str, digest: str = "") -> list[Answer]:
    """One answer per mark; wrong ones are all different from each other, unless `digest` says what they give."""
    return [
        Answer(
            example, candidate, f"{candidate} {number}", f"{candidate} {number}",
            Verdict("", "shop", RIGHT[mark], "", 1.0, 1, False, digest or f"{candidate} {number}", "sqlite"),
        )
        for number, (example, mark) in enumerate(zip(questions, marks, strict=True))
    ]  # fmt: skip


class World:
    """Stands for the machine: models are names, and how they answer is said beforehand, as (selection, play)."""

    def __init__(self, answers: Mapping[str, tuple[int, str]], folder: Path, **selfplay: Any) -> None:
        data = {"databases": [{"name": "shop", "url": "shop.sqlite"}]}
        tree = {"name": "t", "data": data, "model": {"path": "m"}, "selfplay": selfplay}
        self.config = validate(tree, "test")
        self.run = self.report = self
        self._answers, self._folder = answers, folder
        self.trained: dict[str, Training] = {}
        self.manifests: dict[str, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self.files: dict[str, str] = {}

    def event(self, kind: str, **details: Any) -> None:
        self.events.append({"event": kind, **details})

    def say(self, text: str) -> None:
        self.lines.append(text)

    def write(self, name: str, text: str) -> None:
        self.files[name] = text

    def sql_row(self, example: Example) -> TrainRow:
        return TrainRow(example.id, "shop", example.question, example.sql, None, None, example.source)

    def train(self, title: str, trainings: Sequence[Training]) -> list[Candidate]:
        self.trained |= {training.name: training for training in trainings}
        return [self.candidate(training.name) for training in trainings]

    def candidate(self, name: str) -> Candidate:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        (folder / "spftsql.json").write_text(json.dumps(self.manifests.get(name, {})))
        return Candidate(name, str(folder), name)

    def answers(
        self, title: str, candidates: Sequence[Candidate], exams: Mapping[str, Exam]
    ) -> dict[str, dict[str, list[Answer]]]:
        found = {}
        for one in candidates:
            right, play = self._answers[one.name]
            marks = "=" * right + "x" * (len(SELECTION) - right)
            found[one.name] = {
                "selection": answered(one.name, SELECTION, marks),
                "play": answered(one.name, PLAY, play),
            }
        return found

    def play(
        self, labels: Sequence[Example] = LABELS, asked: Sequence[Example] = PLAY, selection: int = len(SELECTION)
    ) -> tuple[dict[Mode, Line], Players]:
        """Self-play from two candidates: m0, trained on labels, and vbi-1."""
        start = [self.candidate("m0"), self.candidate("vbi-1")]
        stages = cast(Stages, self)
        exams = {"selection": Exam(SELECTION[:selection]), "play": Exam(asked)}
        players = Players(exams, start, self.answers("round-1", start, exams))
        self.begin = players
        return self_play(stages, labels, players, lambda candidate: None), players

    def rewards(self, name: str) -> list[int | None]:
        return [row.reward for row in self.trained[name].rows if not row.replay]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]


M0, VBI = (6, "=xxe"), (10, "==x=")


def test_main_is_trained_against_the_weakest_and_joins_the_candidates(tmp_path: Path) -> None:
    world = World({"m0": M0, "vbi-1": VBI, "spft-a-1": (12, "===="), "spft-a-2": (13, "====")}, tmp_path, iterations=2)
    lines, players = world.play()
    first, second = world.trained["spft-a-1"], world.trained["spft-a-2"]
    assert (first.start.name, first.reference and first.reference.name) == ("vbi-1", "m0")
    assert (second.start.name, second.reference and second.reference.name) == ("spft-a-1", "m0")
    assert world.rewards("spft-a-1") == [0, 1, 1, 1]
    assert [one.name for one in players.candidates] == ["m0", "vbi-1", "spft-a-1", "spft-a-2"]
    assert lines["spft-a"].last == lines["spft-a"].kept == players.candidates[-1]
    assert [event["opponent"] for event in world.of("play")] == ["m0", "m0"]
    assert world.of("play")[0]["scores"] == {"vbi-1": 0.5, "m0": 0.3} and not world.of("stopped")


def test_a_candidate_that_is_worse_by_chance_is_no_main_model_but_may_be_the_opponent(tmp_path: Path) -> None:
    world = World({"m0": M0, "vbi-1": VBI, "spft-a-1": (5, "xxxx"), "spft-a-2": (9, "====")}, tmp_path, iterations=2)
    world.play()
    second = world.trained["spft-a-2"]
    assert (second.start.name, second.reference and second.reference.name) == ("vbi-1", "spft-a-1")


def test_spin_goes_on_from_its_last_iterate_whatever_that_is_like(tmp_path: Path) -> None:
    world = World(
        {"m0": M0, "vbi-1": VBI, "spin-1": (8, "xxxx"), "spin-2": (7, "xxxx")}, tmp_path, mode="spin", iterations=2
    )
    world.play()
    second = world.trained["spin-2"]
    assert (second.start.name, second.reference and second.reference.name) == ("spin-1", "spin-1")
    assert world.rewards("spin-1") == [1, 1, 1, 1]


def test_a_line_is_the_same_whatever_is_played_beside_it(tmp_path: Path) -> None:
    answers = {"m0": M0, "vbi-1": VBI, "spft-a-1": (15, "===="), "spft-a-2": (16, "====")}
    answers |= {"spft-b-1": (2, "xxxx"), "spft-b-2": (9, "xx==")}
    alone = World(answers, tmp_path, mode="spft-b", iterations=2)
    beside = World(answers, tmp_path, mode="spft-a", baselines=["spft-b"], iterations=2)
    alone.config = alone.config.model_copy(  # a baseline is not stopped by the collapse that spft-b-1 is
        update={"selfplay": alone.config.selfplay.model_copy(update={"stop_on_collapse": False})}
    )
    alone.play()
    beside.play()
    assert alone.trained["spft-b-1"] == beside.trained["spft-b-1"]
    assert alone.trained["spft-b-2"] == beside.trained["spft-b-2"]


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two near misses of every question; filled with how many were asked for."""
    wanted: list[int] = []

    def made(stages: Stages, questions: Sequence[Example], count: int) -> dict[str, list[Answer]]:
        wanted.append(count)
        return {q.id: [*answered(NEAR_MISS, [q], "x"), *answered(NEAR_MISS, [q], "e")] for q in questions}

    monkeypatch.setattr(lines_module, "near_misses", made)
    return wanted


def test_near_misses_are_played_by_every_mode_and_counted(tmp_path: Path, near: list[int]) -> None:
    modes: tuple[Mode, ...] = ("spin", "dpo", "spft-a", "spft-b", "sft")
    after = {f"{mode}-1": (12, "====") for mode in modes}
    world = World({"m0": M0, "vbi-1": VBI, **after}, tmp_path, baselines=modes, near_misses=2)
    world.play()
    assert near == [2]
    played = {event["mode"]: event for event in world.of("play")}
    assert world.rewards("spft-a-1") == [0, 1, 1, 1] + [1] * 8
    assert {mode: len(world.rewards(f"{mode}-1")) for mode in modes} == {
        "spin": 12, "dpo": 9, "spft-a": 12, "spft-b": 11, "sft": 12,
    }  # fmt: skip
    assert {mode: event["near_misses"] for mode, event in played.items()} == {**dict.fromkeys(modes, 8), "sft": 0}
    assert all(played[mode]["rows"] == len(world.rewards(f"{mode}-1")) for mode in modes)
    assert played["spft-a"]["wrong"] == 3  # of what the opponent wrote
    pairs = {
        mode: {row.id.replace(mode, "") for row in world.trained[f"{mode}-1"].rows if NEAR_MISS in row.id}
        for mode in modes
    }
    assert len(pairs["spin"]) == 8 and pairs["spin"] == pairs["dpo"] == pairs["spft-a"] == pairs["spft-b"]
    assert {row.rejected for row in world.trained["sft-1"].rows} == {None}
    training = world.trained["spft-a-1"]
    assert (training.reference and training.reference.name) == "m0"  # as `reference` says, whoever wrote y′
    assert sum(row.replay for row in training.rows) == 6  # for near misses, too


def test_an_opponent_that_never_errs_leaves_the_near_misses(tmp_path: Path, near: list[int]) -> None:
    world = World({"m0": (6, "===="), "vbi-1": VBI, "spft-b-1": (12, "====")}, tmp_path, mode="spft-b", near_misses=2)
    world.play()
    assert world.rewards("spft-b-1") == [1] * 8 and not world.of("stopped")
    world = World({"m0": (6, "===="), "vbi-1": VBI, "spft-a-1": (12, "====")}, tmp_path, near_misses=2)
    world.play()
    assert "m0 got nothing wrong: the near misses alone are wrong" in world.lines[0]


def test_without_near_misses_nothing_is_made(tmp_path: Path) -> None:
    world = World({"m0": M0, "vbi-1": VBI, "spft-a-1": (12, "====")}, tmp_path)
    world.play()  # this world executes nothing
    assert world.of("play")[0]["near_misses"] == 0


def test_every_iteration_plays_a_part_of_its_own(tmp_path: Path, near: list[int]) -> None:
    answers = {"m0": M0, "vbi-1": VBI, "spft-a-1": (12, "x=x="), "spft-a-2": (13, "====")}

    def played(**settings: Any) -> list[set[str]]:
        world = World(answers, tmp_path, iterations=2, near_misses=2, **settings)
        world.play()
        rows = [[row for row in world.trained[f"spft-a-{i}"].rows if not row.replay] for i in (1, 2)]
        assert [event["questions"] for event in world.of("play")] == [len({r.chosen for r in part}) for part in rows]
        return [{row.id.split("/")[0] for row in part} for part in rows]

    everything = {question.id for question in PLAY}
    assert played() == [everything, everything]
    first, second = played(questions="parts")
    assert len(first) == len(second) == 2 and first | second == everything
    assert played(questions="parts") == [first, second]


def test_an_iteration_without_mistakes_in_its_part_is_passed_over(tmp_path: Path) -> None:
    """Another part may have some; only with the same questions would the next iteration find the same."""
    settings: dict[str, Any] = {"mode": "dpo", "questions": "parts", "iterations": 4}
    for place in range(4):
        marks = "".join("x" if i == place else "=" for i in range(4))
        world = World(
            {"m0": M0, "vbi-1": (10, marks), **{f"dpo-{i}": (11, "====") for i in range(1, 5)}}, tmp_path, **settings
        )
        lines, _ = world.play()
        (trained,) = world.trained.values()
        assert [row.id.split("/")[0] for row in trained.rows if not row.replay] == [f"p{place}"]
        assert lines["dpo"].last.name == trained.name and not lines["dpo"].stopped
        assert len(world.of("skipped")) == 3 and not world.of("stopped")
        assert all("made no usable mistakes (1 right)" in event["why"] for event in world.of("skipped"))


def test_more_iterations_than_questions_cannot_have_a_part_each(tmp_path: Path) -> None:
    world = World({"m0": M0, "vbi-1": VBI}, tmp_path, questions="parts", iterations=5)
    with pytest.raises(UserError, match="a question for each of 5 iterations; the play set has 4: make more"):
        world.play()


def test_the_control_takes_as_many_steps(tmp_path: Path) -> None:
    world = World(
        {"m0": M0, "vbi-1": VBI, "spft-a-1": (12, "===="), "sft-1": (12, "====")}, tmp_path,
        opponent="pool", baselines=["sft"],
    )  # fmt: skip
    world.play()
    assert len(world.trained["sft-1"].rows) == len(world.trained["spft-a-1"].rows)
    assert {event["mode"]: event["opponent"] for event in world.of("play")} == {"sft": "nobody", "spft-a": "m0, vbi-1"}
    assert world.trained["sft-1"].start.name == "vbi-1" and world.trained["sft-1"].reference is None


def test_against_a_pool_main_answers_for_itself_too_and_is_the_reference(tmp_path: Path) -> None:
    world = World({"m0": M0, "vbi-1": VBI, "spft-a-1": (12, "====")}, tmp_path, opponent="pool")
    world.play()
    training = world.trained["spft-a-1"]
    assert training.reference == training.start
    assert world.of("play")[0]["opponent"] == "m0, vbi-1"
    assert world.rewards("spft-a-1") == [0, 1, 1, 1, 0, 0, 1, 0]
    assert len({row.id for row in training.rows}) == len(training.rows)
    near = World({"m0": M0, "vbi-1": VBI, "spft-a-1": (12, "====")}, tmp_path, reference="main")
    near.play()
    assert near.trained["spft-a-1"].reference == near.trained["spft-a-1"].start
    assert near.rewards("spft-a-1") == [0, 1, 1, 1]  # y′ is the opponent's all the same


def test_an_opponent_that_never_errs_stops_the_line_and_says_why(tmp_path: Path) -> None:
    modes: tuple[Mode, ...] = ("dpo", "spft-b")
    for mode in modes:
        world = World({"m0": (6, "===="), "vbi-1": (10, "====")}, tmp_path, mode=mode, iterations=3)
        lines, _ = world.play()
        assert lines[mode].last.name == "vbi-1" and not world.trained
        (stopped,) = world.of("stopped")
        assert stopped["iteration"] == 1 and "made no usable mistakes (4 right); vbi-1 stays" in stopped["why"]
    world = World({"m0": (6, "===="), "vbi-1": VBI, "spft-a-1": (12, "====")}, tmp_path)
    world.play()
    assert world.rewards("spft-a-1") == [0, 0, 0, 0] and "the gold alone is raised" in world.lines[0]


def test_without_questions_nothing_is_played_and_it_is_said(tmp_path: Path) -> None:
    world = World({"m0": M0, "vbi-1": VBI}, tmp_path, baselines=["sft"])
    lines, players = world.play(asked=[])
    assert {mode: (line.last.name, line.kept.name) for mode, line in lines.items()} == {
        "sft": ("vbi-1", "vbi-1"), "spft-a": ("vbi-1", "vbi-1"),
    }  # fmt: skip
    assert not world.trained and [one.name for one in players.candidates] == ["m0", "vbi-1"]
    assert [event["mode"] for event in world.of("stopped")] == ["sft", "spft-a"]
    assert all("no synthetic pair is left" in line.stopped and "vbi-1 stays" in line.stopped for line in lines.values())


@pytest.mark.parametrize(("selection", "told"), [(5, True), (6, False)])
def test_a_selection_set_that_cannot_show_a_collapse_is_told(selection: int, told: bool, tmp_path: Path) -> None:
    world = World({"m0": M0, "vbi-1": VBI, "spft-a-1": (0, "xxxx")}, tmp_path)
    world.play(selection=selection)
    assert [event["event"] for event in world.of("unguarded")] == ["unguarded"] * told
    assert any("a selection set of 5 questions cannot show a collapse" in line for line in world.lines) == told


def test_an_opponent_that_always_errs_is_told(tmp_path: Path) -> None:
    world = World({"m0": (6, "xexe"), "vbi-1": VBI, "spft-a-1": (12, "====")}, tmp_path)
    world.play()
    assert world.rewards("spft-a-1") == [1, 1, 1, 1]
    assert "m0 got nothing right" in world.lines[0]
    world = World({"m0": M0, "vbi-1": VBI, "spft-b-1": (12, "====")}, tmp_path, mode="spft-b")
    world.play()
    assert world.rewards("spft-b-1") == [1, 1, 1] and not world.lines  # the right answer has no row, and is one


def test_verdicts_that_say_nothing_train_nothing(tmp_path: Path) -> None:
    world = World({"m0": (6, "tuut"), "vbi-1": VBI}, tmp_path)
    lines, _ = world.play()
    assert lines["spft-a"].last.name == "vbi-1" and not world.trained
    assert "2 timeout, 2 unverifiable" in world.of("stopped")[0]["why"]


def test_candidates_that_are_all_equal_play_the_oldest_against_the_newest(tmp_path: Path) -> None:
    world = World({"m0": (8, "xx=="), "vbi-1": (8, "xx=="), "spft-a-1": (8, "xx==")}, tmp_path)
    world.play()
    training = world.trained["spft-a-1"]
    assert (training.start.name, training.reference and training.reference.name) == ("vbi-1", "m0")
    assert world.of("play")[0]["scores"] == {"vbi-1": 0.4, "m0": 0.4}


def test_without_labels_nothing_is_replayed(tmp_path: Path) -> None:
    answers = {"m0": M0, "vbi-1": VBI, "spft-a-1": (12, "====")}
    replays = {}
    for name, labels in {"with": LABELS, "without": []}.items():
        world = World(answers, tmp_path)
        world.play(labels)
        replays[name] = sum(row.replay for row in world.trained["spft-a-1"].rows)
    assert replays == {"with": 2, "without": 0}


def test_a_collapse_stops_the_iterations_and_keeps_the_best(tmp_path: Path) -> None:
    """The loss fell, as it does in a collapse; what shows the harm is accuracy alone."""
    answers = {"m0": M0, "vbi-1": (14, "==x="), "spft-a-1": (2, "xxxx"), "spft-a-2": (1, "xxxx")}
    world = World(answers, tmp_path, iterations=3)
    world.manifests["spft-a-1"] = {"loss_start": 0.69, "loss": 0.17, "margin_start": 2.25}
    lines, players = world.play()
    line = lines["spft-a"]
    assert (line.last.name, line.kept.name) == ("spft-a-1", "vbi-1") and "spft-a-2" not in world.trained
    assert [one.name for one in players.candidates] == ["m0", "vbi-1", "spft-a-1"]
    why = world.of("stopped")[0]["why"]
    assert why.startswith("collapse: accuracy on the selection set fell from 0.700 to 0.100 (p = 0.00049)")
    assert why.endswith("while the loss fell from 0.690 to 0.170; vbi-1 is kept")
    assert "mean margin of 2.25" in world.of("saturated")[0]["why"]

    on = World(answers | {"spft-a-3": (1, "xxxx")}, tmp_path, iterations=3, stop_on_collapse=False)
    lines, _ = on.play()
    assert lines["spft-a"].last.name == "spft-a-3" and on.of("collapse") and not on.of("stopped")


def test_a_baseline_shows_its_collapse_to_the_end(tmp_path: Path) -> None:
    answers = {"m0": M0, "vbi-1": (14, "==x="), "spft-a-1": (15, "===="), "spft-a-2": (15, "====")}
    answers |= {"spin-1": (2, "xxxx"), "spin-2": (1, "xxxx")}
    world = World(answers, tmp_path, baselines=["spin"], iterations=2)
    lines, _ = world.play()
    assert lines["spin"].last.name == lines["spin"].kept.name == "spin-2"
    assert [event["candidate"] for event in world.of("collapse")] == ["spin-1"]


def test_a_loss_that_goes_down_while_accuracy_stays_is_no_collapse() -> None:
    before = answered("a", SELECTION, "=" * 10 + "x" * 10)
    after = answered("b", SELECTION, "=" * 8 + "x" * 12)
    assert collapse(before, after, {"loss_start": 0.7, "loss": 0.1}, 0.05) is None
    assert collapse(before, answered("b", SELECTION, "x" * 20), {}, 0.05) is not None


@pytest.mark.parametrize(
    ("margin", "form", "flat"),
    [(None, "logistic", False), (0.0, "logistic", False), (1.5, "logistic", False), (2.25, "logistic", True),
     (0.9, "hinge", False), (1.0, "hinge", True), (-9.0, "hinge", False)],
)  # fmt: skip
def test_a_start_margin_where_the_loss_is_flat_is_told(margin: float | None, form: Any, flat: bool) -> None:
    assert (saturation(margin, form) is not None) == flat


def test_a_gold_that_most_contradict_unanimously_is_set_aside() -> None:
    same = {name: answered(name, PLAY[:1], "x", digest="d") for name in ("a", "b", "c")}
    other = {"z": answered("z", PLAY[:1], "x")}
    found = contradicted("play", same | other, 3)
    assert found["p0"].candidates == ("a", "b", "c") and found["p0"].asked == 4
    assert (found["p0"].gold, found["p0"].instead) == ("SELECT 0", "c 0")
    assert json.loads(quarantine_lines(list(found.values())))["question"] == "play 0"

    assert not contradicted("play", same | other, 4)  # too few agree
    assert not contradicted("play", same | other, None)
    assert not contradicted("play", {"a": same["a"], "b": same["b"]}, 3)
    assert not contradicted("play", same | {"y": answered("y", PLAY[:1], "=")}, 3)  # somebody confirms it
    others = {name: answered(name, PLAY[:1], "x") for name in ("u", "v", "w")}
    assert not contradicted("play", same | others, 3)  # three of six are not most
    torn = {"c": same["c"] + answered("c", PLAY[:1], "x", digest="e")}
    assert not contradicted("play", same | torn, 3)  # c does not agree with itself
    nothing = {"c": [replace(a, verdict=replace(a.verdict, row_count=0)) for a in same["c"]]}
    assert not contradicted("play", same | nothing, 3)  # wrong SQL of any kind finds nothing
    failed = {"c": answered("c", PLAY[:1], "e", digest="d")}
    assert not contradicted("play", same | failed, 3)  # an error is no other result


def test_a_quarantined_gold_is_never_trained_on(tmp_path: Path) -> None:
    answers = {"m0": M0, "vbi-1": VBI, "spft-a-1": (12, "==x="), "spft-a-2": (12, "====")}
    world = World(answers, tmp_path, iterations=2, quarantine=3)
    base = world.answers

    def agreeing(title: str, candidates: Sequence[Candidate], exams: Mapping[str, Exam]) -> Any:
        found = base(title, candidates, exams)
        for one, answers in found.items():
            answers["play"] = answers["play"][:2] + answered(one, PLAY[2:3], "x", digest="d") + answers["play"][3:]
        return found

    world.answers = agreeing  # type: ignore[method-assign]
    world.play()
    assert [row.id.split("/")[0] for row in world.trained["spft-a-1"].rows if not row.replay] == [
        "p0",
        "p1",
        "p2",
        "p3",
    ]
    assert [row.id.split("/")[0] for row in world.trained["spft-a-2"].rows if not row.replay] == ["p0", "p1", "p3"]
    assert [event["left_out"] for event in world.of("play")] == [{}, {"quarantined": 1}]


def test_contradicted_golds_are_listed_but_not_those_of_the_test_set(tmp_path: Path) -> None:
    world = World({}, tmp_path)
    names = ("a", "b")
    exams = {"selection": SELECTION[:1], "play": PLAY[:1], "gate": SELECTION[1:2], "test": SELECTION[2:3]}
    answers = {n: {exam: answered(n, asked, "x", digest="d") for exam, asked in exams.items()} for n in names}
    players = Players(
        {exam: Exam(asked) for exam, asked in exams.items()}, [world.candidate(n) for n in names], answers
    )
    list_contradictions(cast(Stages, world), players)
    listed = [json.loads(line)["exam"] for line in world.files["quarantine.jsonl"].splitlines()]
    assert sorted(listed) == ["gate", "play", "selection"]  # the test set is read by the table alone
    (line,) = world.lines
    assert line.endswith("1 play golds, not trained on; 1 selection and 1 gate golds, which count all the same")

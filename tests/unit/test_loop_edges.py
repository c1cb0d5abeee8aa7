"""What VBI-FT does at its edges: leaks, what is confirmed, what is dropped."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from spftsql.config import Config
from spftsql.databases.schema import Column, Schema, Table
from spftsql.errors import UserError
from spftsql.recipes import validate
from spftsql.records import Example, Sample, Statement, TrainRow, Verdict
from spftsql.selfplay import run, vbi
from spftsql.selfplay.candidates import Answer, Candidate, Exam, Training
from spftsql.selfplay.lineage import Made, pair_files
from spftsql.selfplay.players import Players
from spftsql.selfplay.questions import Phrasing, Vote
from spftsql.selfplay.recombined import label_templates
from spftsql.selfplay.splits import SyntheticSets
from spftsql.selfplay.stages import Stages
from spftsql.synthesis.templates import Template

SCHEMA = Schema(
    "shop", "sqlite", (Table("city", (Column("name", "text", "TEXT"), Column("state", "text", "TEXT")), 9),)
)


def config(**synthesis: Any) -> Config:
    data = {"databases": [{"name": "shop", "url": "shop.sqlite"}]}
    return validate({"name": "t", "data": data, "model": {"path": "m"}, "synthesis": synthesis}, "test")


class Told:
    """Stands for the run and the reporter: keeps what they are told."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.lines: list[str] = []

    def event(self, kind: str, **details: Any) -> None:
        self.events.append({"event": kind, **details})

    def say(self, text: str) -> None:
        self.lines.append(text)


def stages(config: Config, **more: Any) -> tuple[Stages, Told]:
    told = Told()
    database = SimpleNamespace(schema=SCHEMA, content="c")
    fields = {"config": config, "run": told, "report": told, "catalogue": {"shop": database}, **more}
    return cast(Stages, SimpleNamespace(**fields)), told


def made(number: int, question: str, sql: str) -> Made:
    statement = Statement(str(number), "shop", sql, "t", "{}", 0)
    verdict = Verdict(str(number), "shop", "ran", "", 1.0, 1, False, "d", "sqlite")
    pair = Example(f"synthetic/1/{number}", "shop", question, sql, "synthetic", "t")
    return Made(statement, verdict, phrasings=(Phrasing(question),), chosen=0, pair=pair)


TEXAS = "SELECT name FROM city WHERE state = 'texas'"
HELD_OUT = [Example("test-7", "shop", "what are all of the cities in texas ?", TEXAS, "label", "")]
MADE = [
    made(0, "What are all of the cities in Texas?", TEXAS),
    made(1, "what are all of the cities in utah ?", TEXAS.replace("texas", "utah")),
]


def test_a_leak_stops_the_run_and_names_the_pairs() -> None:
    there, told = stages(config())
    with pytest.raises(UserError) as error:
        vbi.without_leaks(there, 1, MADE, HELD_OUT)
    message = str(error.value)
    assert (
        "1 synthetic pairs repeat held-out questions: synthetic/1/0 'What are all of the cities in Texas?'" in message
    )
    assert "test-7" in message and "synthesis.leaks=drop" in message and "\n" not in message
    assert [(event["pair"], event["held_out"]) for event in told.events] == [("synthetic/1/0", "test-7")]


def test_leaks_are_dropped_where_that_is_wanted() -> None:
    there, told = stages(config(leaks="drop"))
    left = vbi.without_leaks(there, 1, MADE, HELD_OUT)
    assert [(one.pair is not None, one.reason) for one in left] == [(False, "leak: test-7"), (True, "")]
    assert told.lines == ["  round 1: 1 pairs that repeat a held-out question are left out"]
    assert vbi.without_leaks(there, 1, MADE, []) == MADE
    with pytest.raises(UserError, match="every synthetic pair repeats a held-out question"):
        vbi.without_leaks(there, 1, MADE[:1], HELD_OUT)


@pytest.mark.parametrize(
    ("sql", "leaks"),
    [
        (TEXAS, True),
        ("SELECT state FROM city GROUP BY state HAVING COUNT(*) > 3", True),
        ("SELECT name FROM city WHERE state IN (SELECT state FROM city)", True),
        ("SELECT name FROM city ORDER BY state LIMIT 1", True),
        ("SELECT COUNT(*) FROM city", False),  # the same by chance
        ("SELECT state, COUNT(*) FROM city GROUP BY state", False),
    ],
)
def test_the_same_sql_is_a_leak_where_it_says_something(sql: str, leaks: bool) -> None:
    there, told = stages(config(leaks="drop"))
    held = [Example("test-8", "shop", "which of them ?", sql.lower(), "label", "")]
    left = vbi.without_leaks(there, 1, [made(0, "say the towns over there", sql), MADE[1]], held)
    assert (left[0].reason == "leak: test-8") == leaks and left[1].pair is not None
    assert [event["same_sql"] for event in told.events] == [True] * leaks


def test_pairs_are_confirmed_by_answers_and_by_votes() -> None:
    votes = tuple(Vote("SELECT", status, "d", 1.0) for status in ("equal", "equal", "different"))
    voted = [Made(one.statement, one.verdict, "", (Phrasing("q", (), votes),), 0, one.pair) for one in MADE]
    play = Example("synthetic/1/9", "shop", "q", "s", "synthetic", "t")
    answers = [
        Answer(play, "vbi-1", "", "", Verdict("", "shop", status, "", 1.0, 1, False, "d", "sqlite"))
        for status in ("different", "equal", "equal")
    ]
    assert [pair.id for pair in vbi.confirmed(answers, MADE, 0.5)] == ["synthetic/1/9"]  # nobody voted
    assert [pair.id for pair in vbi.confirmed(answers, voted, 0.5)][1:] == ["synthetic/1/0", "synthetic/1/1"]
    assert [pair.id for pair in vbi.confirmed(answers, voted, 0.9)] == ["synthetic/1/9"]


def answer(pair: Example, status: str, fault: str | None = None) -> Answer:
    return Answer(pair, "vbi-1", "", "", Verdict("", "shop", status, "", 1.0, 1, False, "d", "sqlite", fault))


def templates(*names: str) -> list[Template]:
    return [Template(name, "SELECT col_text_1", (), 1, "easy") for name in names]


def test_templates_of_what_failed_weigh_more() -> None:
    pairs = {name: Example(name, "shop", "q", "s", "synthetic", name) for name in ("hard", "easy")}
    answers = [answer(pairs["hard"], "different")] * 2 + [
        answer(pairs["hard"], "error"),
        answer(pairs["easy"], "equal"),
    ]
    answers.append(answer(pairs["easy"], "error", "a fault of ours"))
    weights = vbi.reweighted(templates("hard", "easy", "unasked"), answers, {})
    assert weights == {"hard": 4 / 5, "easy": 1 / 3, "unasked": 1 / 2}


def test_what_failed_counts_for_the_labels_that_a_pair_was_made_of() -> None:
    """A nested structure has a template of its own, which no label has."""
    pairs = [Example(f"p{number}", "shop", "q", "s", "synthetic", "nested") for number in range(3)]
    origins = {"p0": ["outer", "inner"], "p1": ["outer", "nested"], "p2": ["inner"]}
    answers = [answer(pair, status) for pair, status in zip(pairs, ("different", "error", "equal"), strict=True)]
    weights = vbi.reweighted(templates("outer", "other"), answers, origins)
    assert weights == {"outer": 3 / 4, "inner": 1 / 2, "nested": 3 / 5, "other": 1 / 2}


def test_pairs_made_of_labels_are_known_by_the_templates_of_these() -> None:
    bindings = json.dumps({"parents": ["label-1"], "templates": ["t1", "t2"]})
    worded = replace(MADE[0], statement=replace(MADE[0].statement, bindings=bindings), worded=True)
    assert label_templates([worded, MADE[1], worded.dropped("leak: test-7")]) == {"synthetic/1/0": ["t1", "t2"]}


def test_the_next_round_follows_the_answers_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The question model learns from labels and from what was answered rightly; what failed weighs more."""
    labels = [Example("label-1", "shop", "which towns?", TEXAS, "label", "l")]
    drawn: list[Any] = []
    trained: list[Training] = []

    def with_recombined(*given: Any) -> list[Made]:
        drawn.append(given[6])
        return [replace(made(3 * len(drawn) + number, "q", TEXAS), reason="") for number in range(3)]

    def debut(stages: Stages, players: Players, title: str, candidates: list[Candidate]) -> None:
        played = players.exams["play"].questions
        answers = [answer(pair, status) for pair, status in zip(played, ("equal", "different"), strict=True)]
        players.answers[candidates[-1].name] = {"play": answers}

    def train(title: str, trainings: list[Training]) -> list[Candidate]:
        trained.extend(trainings)
        return [Candidate(training.name, training.name, training.name) for training in trainings]

    def row(example: Example) -> TrainRow:
        return TrainRow(example.id, "shop", "p", "c", None, None, example.source)

    def split_pairs(pairs: list[Example], *_: Any) -> SyntheticSets:
        return SyntheticSets(tuple(pairs[:1]), tuple(pairs[1:]), (), frozenset("h"), frozenset())

    monkeypatch.setattr(run, "template_pool", lambda *_: templates("t", "u"))
    monkeypatch.setattr(run, "with_recombined", with_recombined)
    monkeypatch.setattr(run, "label_templates", lambda _: {})
    monkeypatch.setattr(run, "debut", debut)
    monkeypatch.setattr(run, "write_pairs", lambda *_: None)
    monkeypatch.setattr(vbi, "phrased", lambda stages, round_, made, *_: made)
    monkeypatch.setattr(vbi, "question_row", lambda stages, example: row(example))
    monkeypatch.setattr(run, "split_pairs", split_pairs)
    there = config()
    there = there.model_copy(update={"vbi": there.vbi.model_copy(update={"rounds": 2, "control": False})})
    base = Candidate("base", "m", "m")
    calls = {"train": train, "sql_row": row, "done_with": lambda _: None}
    players = Players({"gate": Exam([]), "test": Exam([])}, [base], {})
    run.vbi_rounds(stages(there, **calls)[0], base, labels, players, base)

    by_name = {training.name: training for training in trained}
    assert [training.name for training in trained] == ["vbi-1", "question-1", "vbi-2"]
    assert [row.id for row in by_name["question-1"].rows] == ["label-1", "synthetic/1/4"]  # not the one that failed
    assert by_name["question-1"].start == base
    assert drawn == [None, {"t": 1 / 2, "u": 1 / 2}]  # one of two answers to `t` was right, none was given to `u`


def test_files_of_pairs_come_by_round(tmp_path: Path) -> None:
    for number in (10, 9):
        (tmp_path / "pairs").mkdir(exist_ok=True)
        (tmp_path / "pairs" / f"round-{number}.parquet").touch()
    assert [path.stem for path in pair_files(tmp_path)] == ["round-9", "round-10"]
    assert pair_files(tmp_path / "nothing") == []


def test_a_statement_that_could_not_be_asked_about_is_dropped_with_the_reason() -> None:
    """Of three statements one gets a question, one a question without its value, one an error of the engine."""

    def generate(title: str, requests: list[str], models: list[Candidate], onward: object) -> list[Sample]:
        texts = ["cities in texas", "which cities", ""]
        errors = [None, None, "the prompt has 9000 tokens"]
        return [
            Sample(request, "shop", "m", 0, text, 1, "stop", error)
            for request, text, error in zip(requests, texts, errors, strict=True)
        ]

    prompts = SimpleNamespace(sql_to_text=lambda *_: "prompt", parse_question=lambda text: text)
    calls = {"generate": generate, "request": lambda identity, *_: identity, "early_folder": lambda *_: Path("early")}
    there, told = stages(config(), prompts=prompts, **calls)
    asked = [Made(made(number, "", TEXAS).statement, MADE[0].verdict) for number in range(3)]
    dropped = Made(made(3, "", TEXAS).statement, MADE[0].verdict, "empty")
    writer = Candidate("base", "m", "m")
    found = vbi.phrased(there, 1, [*asked, dropped], writer, writer)
    assert [one.reason for one in found] == [
        "",
        "a value is not said",
        "not asked: the prompt has 9000 tokens",
        "empty",
    ]
    assert found[0].pair is not None and found[0].pair.question == "cities in texas"
    assert told.events[0]["pairs"] == 1 and sum(told.events[0]["dropped"].values()) == 2


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ([9000], "none of 1 synthetic statements got a question (1 not asked: the prompt has 9000 tokens): train"),
        (
            [7, 8, 8, 9, 10, 11],
            "(2 not asked: the prompt has 8 tokens, 1 not asked: the prompt has 7 tokens, "
            "1 not asked: the prompt has 9 tokens, 2 for other reasons, see events.jsonl): train",
        ),
    ],
)
def test_where_no_statement_gets_a_question_the_line_has_the_most_frequent_reasons(
    tokens: list[int], said: str
) -> None:
    def generate(title: str, requests: list[str], models: list[Candidate], onward: object) -> list[Sample]:
        pairs = zip(requests, tokens, strict=True)
        return [Sample(id_, "shop", "m", 0, "", 0, "error", f"the prompt has {count} tokens") for id_, count in pairs]

    prompts = SimpleNamespace(sql_to_text=lambda *_: "prompt", parse_question=lambda text: text)
    calls = {"generate": generate, "request": lambda identity, *_: identity, "early_folder": lambda *_: Path("early")}
    there, told = stages(config(), prompts=prompts, **calls)
    asked = [Made(made(number, "", TEXAS).statement, MADE[0].verdict) for number in range(len(tokens))]
    writer = Candidate("base", "m", "m")
    with pytest.raises(UserError, match=re.escape(said)):
        vbi.phrased(there, 1, asked, writer, writer)
    assert sum(told.events[0]["dropped"].values()) == len(tokens)


def test_questions_for_one_template_alone_are_blamed_on_what_dropped_the_others() -> None:
    def generate(title: str, requests: list[str], models: list[Candidate], onward: object) -> list[Sample]:
        texts = ["cities in texas", "which cities", "which cities"]
        return [Sample(id_, "shop", "m", 0, text, 1, "stop", None) for id_, text in zip(requests, texts, strict=True)]

    prompts = SimpleNamespace(sql_to_text=lambda *_: "prompt", parse_question=lambda text: text)
    calls = {"generate": generate, "request": lambda identity, *_: identity, "early_folder": lambda *_: Path("early")}
    asked = [Made(made(number, "", TEXAS).statement, MADE[0].verdict) for number in range(3)]
    other = replace(asked[2], statement=replace(asked[2].statement, template="other"))
    writer = Candidate("base", "m", "m")
    there = stages(config(), prompts=prompts, **calls)[0]
    said = "only 1, all of one template, of 3 synthetic statements got a question (2 a value is not said): train"
    with pytest.raises(UserError, match=re.escape(said)):
        vbi.phrased(there, 1, [*asked[:2], other], writer, writer)
    # A later round makes no selection set; and where there is no other template, questions are not to blame.
    for round_, statements in ((2, [*asked[:2], other]), (1, asked)):
        assert sum(one.pair is not None for one in vbi.phrased(there, round_, statements, writer, writer)) == 1

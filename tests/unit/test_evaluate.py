"""`spftsql evaluate`: answers of a model behind an address or on this machine, kept, voted on and scored."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from spftsql.cli import main
from spftsql.config import PromptConfig
from spftsql.errors import UserError
from spftsql.evaluation import endpoint_model
from spftsql.evaluation.answers import Ask
from spftsql.evaluation.endpoint_model import EndpointModel, Patience, completions_url
from spftsql.evaluation.local_model import choose_model
from tests.chat_server import Chat, chat_server, question_of

QUESTIONS = {
    "How many cities are there?": "SELECT count(*) FROM city",
    "Which cities have more than 500000 people?": "SELECT name FROM city WHERE population > 500000",
    "Which cities are in Norway?": "SELECT name FROM city WHERE country = 'Norway'",
    "What is the largest population?": "SELECT max(population) FROM city",
    "Which countries are there?": "SELECT DISTINCT country FROM city",
    "Who is the mayor of Oslo?": "SELECT mayor FROM city WHERE name = 'Oslo'",
}
NAMES = list(QUESTIONS)
WRONG = "SELECT name FROM city WHERE population < 0"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    with closing(sqlite3.connect(folder / "towns.sqlite")) as connection:
        connection.executescript(
            "CREATE TABLE city (name TEXT, country TEXT, population INTEGER, mayor TEXT);"
            "INSERT INTO city VALUES ('Oslo', 'Norway', 700000, 'A'), ('Bergen', 'Norway', 290000, 'B'),"
            " ('Malmö', 'Sweden', 350000, 'C'), ('Göteborg', 'Sweden', 590000, 'D');"
        )
    rows = [{"db_id": "towns", "question": question, "sql": sql} for question, sql in QUESTIONS.items()]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_model, "Patience", lambda: Patience(tries=3, first_s=0.001))


def run(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["spftsql", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


def evaluate(chat: Chat, root: Path, *more: object) -> int:
    options = ("--benchmark", "jsonl", "--root", root, "--endpoint", chat.url, "--workers", 1)
    return run("evaluate", "a-model", *options, *more)


def golds(question: str) -> list[str]:
    """Right on the first four; of samples mostly right on the fifth, which is wrong when greedy; wrong on the last."""
    sql = QUESTIONS[question]
    place = NAMES.index(question)
    if place < 4:
        return [f"```sql\n{sql};\n```"]
    if place == 4:
        return [WRONG, sql, "SELECT country FROM city GROUP BY country", sql]
    return ["I do not know."]


def test_an_endpoint_is_measured_greedy_and_voted(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: tmp_path / f"out.{name}" for name in ("json", "markdown", "html")}
    outputs = [text for name, path in files.items() for text in (f"--{name}", path)]
    with chat_server(Chat(golds)) as chat:
        assert evaluate(chat, root, "--n", 4, "--answers", tmp_path / "kept", *outputs) == 0
        assert len(chat.bodies) == 2 * len(QUESTIONS)
        assert {body["temperature"] for body in chat.bodies} == {0.0, 0.8}
        assert {body["model"] for body in chat.bodies} == {"a-model"}
        assert chat.keys == {""}
        assert all("city" in body["messages"][0]["content"] for body in chat.bodies)
    tree = json.loads(files["json"].read_text())
    assert [item["verdict"] for item in tree["greedy"]["items"]] == ["equal"] * 4 + ["different", "error"]
    assert [item["verdict"] for item in tree["voted"]["items"]] == ["equal"] * 5 + ["error"]
    assert (tree["greedy"]["accuracy"], tree["voted"]["accuracy"]) == (4 / 6, 5 / 6)
    assert (tree["voted"]["against"]["only_here"], tree["voted"]["against"]["only_there"]) == (1, 0)
    assert tree["voted"]["by_database"][0]["db_id"] == "towns"
    assert tree["effort"]["tokens"] == 6 * 7 + 6 * 28
    said = capsys.readouterr().out
    assert "right only when voted 1, only when greedy 0" in said
    assert "| execution accuracy | 0.667 |" in files["markdown"].read_text()
    page = files["html"].read_text()
    assert "Who is the mayor of Oslo?" in page and 'data-greedy="different" data-voted="equal"' in page


@pytest.mark.long
def test_the_metrics_of_a_scoring_are_there_for_both(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    more = ("--suite", 2, "--metrics", "ves,soft-f1", "--repeats", 10, "--json", out)
    with chat_server(Chat(golds)) as chat:
        assert evaluate(chat, root, "--n", 4, "--answers", tmp_path / "kept", *more) == 0
    tree = json.loads(out.read_text())
    for side in ("greedy", "voted"):
        assert set(tree[side]["metrics"]) == {"ex", "ts", "soft-f1", "ves"}
        assert tree[side]["measure"] == "ts"


def test_the_answers_are_a_predictions_file(root: Path, tmp_path: Path) -> None:
    kept, out = tmp_path / "kept", tmp_path / "score.json"
    with chat_server(Chat(golds)) as chat:
        assert evaluate(chat, root, "--n", 4, "--answers", kept) == 0
    for name, right in (("greedy", 4), ("voted", 5)):
        given = ("--root", root, "--predictions", kept / f"{name}.jsonl", "--json", out)
        assert run("score", "--benchmark", "jsonl", *given) == 0
        assert json.loads(out.read_text())["right"] == right


def test_what_fails_on_the_way_is_tried_again_and_is_no_wrong_answer(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_model, "Patience", lambda: Patience(tries=8, first_s=0.001))
    failures: list[tuple[int, Any]] = [
        (500, "oops"), (429, {"error": {"message": "slow"}}), (0, ""), (200, "no JSON"), (200, {"choices": []}),
        (503, ""),
    ]  # fmt: skip
    out = tmp_path / "out.json"
    with chat_server(Chat(golds, lambda number, body: failures.pop() if failures else None)) as chat:
        assert evaluate(chat, root, "--n", 1, "--concurrency", 2, "--answers", tmp_path / "kept", "--json", out) == 0
        assert len(chat.bodies) == len(QUESTIONS) + 6
        assert chat.most_at_once <= 2
    tree = json.loads(out.read_text())
    assert (tree["greedy"]["right"], tree["voted"]) == (4, None)


def test_a_server_that_fails_for_some_ends_in_a_fault_and_is_asked_for_the_rest_later(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"

    def trouble(number: int, body: dict[str, Any]) -> tuple[int, Any] | None:
        return (502, {"error": {"message": "bad gateway"}}) if NAMES.index(question_of(body)) in (1, 3) else None

    with chat_server(Chat(golds, trouble)) as chat:
        assert evaluate(chat, root, "--n", 1, "--answers", kept, "--json", tmp_path / "no.json") == 4
        assert len(chat.bodies) == 4 + 2 * 3
        error = " ".join(capsys.readouterr().err.split())
        assert "2 questions were not answered (question 1:" in error and "502: bad gateway, 3 tries" in error
        assert not (tmp_path / "no.json").exists()
        assert len((kept / "greedy.jsonl").read_text().splitlines()) == 4
        with (kept / "greedy.jsonl").open("a") as file:
            file.write('{"index": 1, "predicted_sql": "SEL')  # the power went
        chat.trouble = lambda number, body: None
        chat.bodies.clear()
        assert evaluate(chat, root, "--n", 1, "--answers", kept, "--json", tmp_path / "yes.json") == 0
        assert sorted(chat.questions) == sorted([NAMES[1], NAMES[3]])
        assert json.loads((tmp_path / "yes.json").read_text())["greedy"]["right"] == 4
        chat.bodies.clear()
        assert evaluate(chat, root, "--n", 1, "--answers", kept) == 0
        assert chat.bodies == []
        assert (
            evaluate(chat, root, "--n", 1, "--answers", kept, "--max-tokens", 9) == 0
        )  # another question to the model
        assert len(chat.bodies) == 6 and {body["max_tokens"] for body in chat.bodies} == {9}


def test_a_server_that_is_down_is_not_asked_a_thousand_times(tmp_path: Path) -> None:
    waits: list[float] = []
    with chat_server(Chat(golds, lambda number, body: (503, ""))) as chat:
        model = EndpointModel(chat.url, "m", None, PromptConfig(), 1, Patience(4, 0.5), waits.append)
        asks = [Ask(index, "towns", "Question: x", 1, 0.0, 9, 0) for index in range(50)]
        faults = model.answer(asks, lambda ask, reply: pytest.fail("an answer"))
        model.close()
        assert len(faults) == 50
        assert len(chat.bodies) <= 4 * 4
        assert waits[1] > 1.5 * waits[0]


def test_the_answers_depend_on_no_order_and_the_same_seed_gives_the_same_questions(root: Path, tmp_path: Path) -> None:
    drawn = []
    with chat_server(Chat(golds)) as chat:
        for name, seed in (("one", 3), ("two", 3), ("three", 4)):
            chat.bodies.clear()
            options = ("--n", 2, "--limit", 3, "--seed", seed, "--answers", tmp_path / name)
            assert evaluate(chat, root, *options, "--json", tmp_path / name / "out.json") == 2  # no folder yet
            assert evaluate(chat, root, *options, "--json", tmp_path / f"{name}.json") == 0
            drawn.append(sorted((body["seed"], question_of(body)) for body in chat.bodies))
    assert drawn[0] == drawn[1] != drawn[2]
    assert json.loads((tmp_path / "one.json").read_text())["questions"] == 3


def kept_rows(folder: Path, name: str = "greedy") -> dict[int, dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    return {row["index"]: row for row in rows}


def test_questions_that_are_drawn_keep_their_places_in_the_benchmark(root: Path, tmp_path: Path) -> None:
    kept, out = tmp_path / "kept", tmp_path / "out.json"
    options = ("--n", 2, "--answers", kept, "--json", out)
    with chat_server(Chat(golds)) as chat:
        asked: set[int] = set()
        replies: dict[int, Any] = {}
        for limit in (2, 4, 5, 6):
            chat.bodies.clear()
            assert evaluate(chat, root, "--limit", limit, *options) == 0
            tree = json.loads(out.read_text())
            indices = [item["index"] for item in tree["greedy"]["items"]]
            assert len(indices) == limit and indices == sorted(indices)
            assert [item["index"] for item in tree["voted"]["items"]] == indices
            for index, row in kept_rows(kept).items():
                assert row["question"] == NAMES[index]
            for item in tree["greedy"]["items"]:
                assert (item["verdict"] == "equal") == (item["index"] < 4)
            # What was drawn before is drawn again, and not asked again.
            assert set(indices) >= asked
            new = [NAMES[index] for index in set(indices) - asked]
            assert sorted(chat.questions) == sorted([*new, *new])
            texts = {index: row["texts"] for index, row in kept_rows(kept, "samples").items()}
            assert texts.items() >= replies.items()
            asked, replies = set(indices), texts


def test_questions_are_drawn_where_there_is_a_database(root: Path, tmp_path: Path) -> None:
    partly, out = tmp_path / "partly", tmp_path / "out.json"
    shutil.copytree(root, partly)
    row = {"db_id": "elsewhere", "question": "How many?", "sql": "SELECT 1"}
    with (partly / "test.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row | {"question": f"How many of {number}?"}) + "\n" for number in range(50))
    with chat_server(Chat(golds)) as chat:
        for limit in (1, 6, 7):
            chat.bodies.clear()
            assert evaluate(chat, partly, "--limit", limit, "--answers", tmp_path / str(limit), "--json", out) == 0
            found = [item["index"] for item in json.loads(out.read_text())["greedy"]["items"]]
            assert len(chat.bodies) == 2 * min(limit, 6)
            assert len([index for index in found if index < 6]) == min(limit, 6)


def test_predictions_for_drawn_questions_are_scored_on_these(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, whole, out = tmp_path / "kept", tmp_path / "whole", tmp_path / "out.json"
    with chat_server(Chat(golds)) as chat:
        assert evaluate(chat, root, "--n", 4, "--answers", whole) == 0
        assert evaluate(chat, root, "--n", 4, "--limit", 2, "--answers", kept) == 0
        assert evaluate(chat, root, "--n", 4, "--limit", 4, "--answers", kept, "--json", out) == 0
    evaluated = json.loads(out.read_text())
    score = ("score", "--benchmark", "jsonl", "--root", root, "--json", out, "--predictions")
    for name in ("greedy", "voted"):
        assert run(*score, kept / f"{name}.jsonl") == 0
        scored = json.loads(out.read_text())
        assert scored["items"] == evaluated[name]["items"] and scored["n"] == 4
        assert "4 of 6 questions, those that were drawn" in " ".join(capsys.readouterr().out.split())
    assert run(*score, kept / "voted.jsonl", "--against", whole / "greedy.jsonl") == 0
    assert json.loads(out.read_text())["against"]["accuracy"] == evaluated["greedy"]["accuracy"]
    assert run(*score, whole / "voted.jsonl", "--against", kept / "greedy.jsonl") == 2
    assert "has predictions for 4 of the 6 questions" in " ".join(capsys.readouterr().err.split())
    lines = (kept / "greedy.jsonl").read_text().splitlines(keepends=True)
    (kept / "greedy.jsonl").write_text("".join(lines[:3]))
    assert run(*score, kept / "greedy.jsonl") == 2
    assert "has 3 predictions for 4 questions that were drawn" in " ".join(capsys.readouterr().err.split())


def test_servers_of_other_habits(root: Path, tmp_path: Path) -> None:
    """One that gives one answer at a time, wants `max_completion_tokens`, and has a short context."""

    def trouble(number: int, body: dict[str, Any]) -> tuple[int, Any] | None:
        if body.get("n", 1) > 1:
            return 400, {"error": {"message": "n must be 1"}}
        if "max_tokens" in body:
            return 400, {"error": {"message": "use max_completion_tokens instead"}}
        if question_of(body) == NAMES[0]:
            return 400, {"error": {"message": "the maximum context length is 10 tokens"}}
        return None

    out = tmp_path / "out.json"
    with chat_server(Chat(golds, trouble)) as chat:
        assert evaluate(chat, root, "--n", 3, "--answers", tmp_path / "kept", "--json", out) == 0
    tree = json.loads(out.read_text())
    assert tree["greedy"]["right"] == 3
    assert any("could not be put to the model" in note for note in tree["notes"])


def test_a_key_is_sent_and_kept_nowhere(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "open-sesame")
    with chat_server(Chat(golds)) as chat:
        assert evaluate(chat, root, "--n", 1, "--key-env", "MY_KEY", "--answers", tmp_path / "kept") == 0
        assert chat.keys == {"Bearer open-sesame"}
    assert all("open-sesame" not in file.read_text() for file in (tmp_path / "kept").iterdir())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--endpoint", "ftp://x", "--benchmark", "jsonl"], "--endpoint ftp://x: give an address"),
        (
            ["--endpoint", "http://x", "--key-env", "NOT_SET", "--benchmark", "jsonl"],
            "--key-env NOT_SET: this environm",
        ),
        (["--endpoint", "http://x", "--engine", "vllm", "--benchmark", "jsonl"], "--candidate and --engine are for"),
        (["--key-env", "HOME", "--benchmark", "jsonl"], "--key-env goes with --endpoint"),
        (["--benchmark", "jsonl"], "is neither a run (config.yaml) nor a model directory"),
        (["--benchmark", "wikisql"], "unknown benchmark wikisql; known: spider, spider-test"),
        (["--benchmark", "spider-dk"], "Spider-DK.json is missing"),
        (["--benchmark", "jsonl", "--html", "none/page.html"], "the folder"),
    ],
)
def test_mistakes_end_in_one_line(
    root: Path, options: list[str], complaint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert run("evaluate", "no-model", "--root", root, *options) == 2
    assert complaint in " ".join(capsys.readouterr().err.split())


def test_a_refusal_of_the_server_is_said(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with chat_server(Chat(golds, lambda number, body: (401, {"error": {"message": "no such key"}}))) as chat:
        assert evaluate(chat, root, "--n", 1, "--answers", tmp_path / "kept") == 2
        assert len(chat.bodies) <= 8 + 1
    assert "refuses the request (401): no such key" in " ".join(capsys.readouterr().err.split())


def test_addresses() -> None:
    for given in ("http://x:1", "http://x:1/", "http://x:1/v1", "http://x:1/v1/chat/completions"):
        assert completions_url(given) == "http://x:1/v1/chat/completions"
    assert completions_url("https://x/api/v2") == "https://x/api/v2/chat/completions"


def test_a_model_directory_gives_the_same_answers_for_the_same_seed(
    root: Path, tmp_path: Path, tiny_models: list[str]
) -> None:
    found = []
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        options = ("--benchmark", "jsonl", "--root", root, "--engine", "transformers", "--schema-tokens", 20)
        more = ("--n", 3, "--max-tokens", 5, "--temperature", 1.5, "--seed", seed, "--answers", tmp_path / name)
        assert run("evaluate", tiny_models[0], *options, *more, "--json", tmp_path / f"{name}.json") == 0
        rows = [json.loads(line) for line in (tmp_path / name / "samples.jsonl").read_text().splitlines()]
        found.append([row["texts"] for row in rows])
    assert found[0] == found[1] != found[2]
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one["greedy"]["items"] == two["greedy"]["items"] and one["prompts"] == two["prompts"]


def test_what_a_model_stands_for(tmp_path: Path) -> None:
    """A candidate inside a run is asked as the run asks it, with the run's own settings."""
    from spftsql.recipes import resolve
    from spftsql.runs import Run

    run_ = Run(resolve("demo", [f"run_dir={tmp_path}"]))

    def build(folder: Path) -> None:
        (folder / "sft").mkdir()
        (folder / "sft" / "config.json").write_text("{}")

    stage = run_.stage("train-labels", 1, build)
    run_.close()
    by_name = choose_model(str(run_.root), "sft", "transformers")
    by_path = choose_model(str(stage.path / "sft"), None, "transformers")
    assert by_name.model == by_path.model == stage.path / "sft"
    assert by_name.config == by_path.config and by_name.config.prompt.sql_style == "spaced"
    assert by_name.name == "demo/sft"


def test_a_candidate_is_that_of_the_settings_which_the_run_had_last(tmp_path: Path) -> None:
    """Models of earlier settings and of folds lie beside it, and may be newer files."""
    from spftsql.recipes import resolve
    from spftsql.runs import Run

    def build(folder: Path) -> None:
        (folder / "vbi-1").mkdir()

    run_ = Run(resolve("demo", [f"run_dir={tmp_path}"]))
    wanted = run_.stage("train-round-1", "first settings", build).path / "vbi-1"
    others = [run_.stage("train-round-1", "other settings", build), run_.stage("train-round-1-fold-1", 1, build)]
    run_.close()
    again = Run(resolve("demo", [f"run_dir={tmp_path}"]))
    assert again.stage("train-round-1", "first settings", build).path / "vbi-1" == wanted
    again.close()
    for later, stage in enumerate(others, 1):
        moment = time.time() + later
        os.utime(stage.path / "vbi-1", (moment, moment))
    assert choose_model(str(run_.root), "vbi-1", "transformers").model == wanted
    for name in ("vbi-2", "../vbi-1"):
        with pytest.raises(UserError, match=f"has no candidate {re.escape(name)}; it has vbi-1"):
            choose_model(str(run_.root), name, "transformers")

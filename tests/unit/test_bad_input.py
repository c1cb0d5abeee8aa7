"""What a person can get wrong ends in one clear line and an exit code, never in a traceback."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from spftsql.cli import main
from spftsql.config import ScratchConfig
from spftsql.training.scratch import build_scratch_model

SCORE = ["score", "--benchmark", "jsonl", "--root", ".", "--predictions", "predictions.sql"]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "towns.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE town (name TEXT); INSERT INTO town VALUES ('Ulm'), ('Bonn')")
    connection.close()
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    scratch = ScratchConfig(hidden_size=64, heads=2, layers=1, intermediate_size=64, vocabulary=400)
    build_scratch_model(scratch, 128, ["which towns are there"], tmp_path / "model", seed=0)
    return tmp_path / "model"


def recipe(folder: Path, database: Path, train: list[dict[str, str]], model: str = "{scratch: {}}") -> str:
    """A recipe over one's own files, run without Ray."""
    good = {"db_id": "towns", "question": "which towns", "sql": "SELECT name FROM town"}
    for name, rows in {"train": train, "gate": [good], "test": [good]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "towns.yaml"
    path.write_text(
        f"name: towns\nexecution: local\nrun_dir: {folder / 'runs'}\ngeneration: {{engine: transformers}}\n"
        f"data: {{benchmark: jsonl, root: {folder}, databases: [{{name: towns, url: {database}}}]}}\n"
        f"model: {model}\n"
    )
    return str(path)


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and standard error of `spftsql ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["spftsql", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    code = ended.value.code
    return code if isinstance(code, int) else 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "demo", "--set", "trainin.workers=1"], "unknown key trainin; did you mean training?"),
        (["run", "demmo"], "no recipe named demmo; did you mean demo?"),
        (["run", "nowhere.yaml"], "recipe file nowhere.yaml does not exist"),
        (["run", "geoquery"], "set data.root"),
        (["run", "geoquery", "--set", "data.root=nowhere"], "nowhere"),
        (["run", "demo", "--address", "127.0.0.1:1"], "Ray cannot be reached at 127.0.0.1:1"),
        (["submit", "demo", "--address", "http://127.0.0.1:1"], "127.0.0.1:1"),
        (["schema", "nowhere.sqlite"], "database file nowhere.sqlite does not exist"),
        (["verify", "--db", "nowhere.sqlite", "--sql", "SELECT 1"], "database file nowhere.sqlite does not exist"),
        (["verify", "--db", "x", "--sql", "SELECT 1", "--policy", "lax"], "unknown policy lax"),
        (["serve", "nowhere"], "neither a finished run"),
        (["serve", "damaged", "--db", "x=y"], "result.json is damaged or of another version"),
        (["run", "latin.yaml"], "recipe file latin.yaml cannot be read as UTF-8"),
        ([*SCORE, "--json", "no/where.json"], "no does not exist"),
        (["ask", "why?", "--url", "http://127.0.0.1:1"], "http://127.0.0.1:1"),
    ],
)
def test_one_line_says_what_to_do(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff\n")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.yaml").write_text("name: damaged\n")
    (tmp_path / "damaged" / "result.json").write_text('{"rows": []}')
    code, error = run(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code in (2, 4)
    assert message in error
    assert "Traceback" not in error
    assert error.strip().splitlines()[-1].startswith("spftsql: ")


def test_an_empty_labelled_set(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = run("run", recipe(tmp_path, database, []), monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2 and "no labelled training questions" in error


def test_a_missing_database_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, tmp_path / "gone.sqlite", [{"db_id": "towns", "question": "q", "sql": "SELECT 1"}])
    code, error = run("run", path, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2 and "gone.sqlite does not exist" in error


def test_labels_that_do_not_parse_or_run_are_reported_by_index_and_set_aside(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = ["SELECT name FROM", "SELECT mayor FROM town"]
    train = [{"db_id": "towns", "question": f"question {i}", "sql": sql} for i, sql in enumerate(broken)]
    code, error = run("run", recipe(tmp_path, database, train), monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert "labels: pair 0 set aside" in error and "labels: pair 1 set aside (error: no such column: mayor)" in error
    assert "none of the 2 labelled SQL statements runs" in error
    events = (tmp_path / "runs" / "towns" / "events.jsonl").read_text().splitlines()
    aside = [event for event in map(json.loads, events) if event["event"] == "label-set-aside"]
    assert [event["index"] for event in aside] == [0, 1]


def test_a_model_without_a_chat_template(
    tmp_path: Path, database: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "chat_template.jinja").unlink()
    train = [{"db_id": "towns", "question": "which towns", "sql": "SELECT name FROM town"}]
    path = recipe(tmp_path, database, train, model=f"{{path: {model}}}")
    code, error = run("run", path, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2 and "has no chat template: set model.chat_template" in error
    (tmp_path / "template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    with_template = f"--set=model.chat_template={tmp_path / 'template.jinja'}"
    fitting = ["--set=model.max_length=128", "--set=prompt.max_schema_tokens=64", "--set=generation.max_tokens=32"]
    code, error = run("run", path, with_template, *fitting, "--dry-run", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, error) == (0, "")


@pytest.mark.parametrize("path", ["/nonexist", "./nonexist", "../no/exist", "~/nonexist", "no/such/folder", "models/"])
def test_a_model_directory_that_is_not_there(
    path: str, tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train = [{"db_id": "towns", "question": "which towns", "sql": "SELECT name FROM town"}]
    written = recipe(tmp_path, database, train, model=f"{{path: {path}}}")
    code, error = run("run", written, monkeypatch=monkeypatch, capsys=capsys)
    said = f"spftsql: model {path}: there is no such directory; give a model's directory, or its name on the Hub"
    assert code == 2 and error.strip().splitlines()[-1].startswith(said), error


def test_a_model_to_train_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"id": "1", "db_id": "d", "prompt": "p", "chosen": "c", "source": "label"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    arguments = [
        "finetune",
        "--data",
        str(tmp_path / "rows.jsonl"),
        "--model",
        "/nonexist",
        "--out",
        str(tmp_path / "o"),
    ]
    code, error = run(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2 and "/nonexist: there is no such directory" in error and "Repo id" not in error


def test_a_port_in_use(
    database: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = ["serve", str(model), "--db", f"towns={database}", "--port", port]
        code, error = run(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2 and port in error


@pytest.mark.parametrize(
    ("sql", "gold", "code", "said"),
    [
        ("SELECT name FROM town", None, 0, "ran, 2 rows"),
        ("SELECT name FROM town", "SELECT name FROM town ORDER BY 1", 1, "different"),
        ("SELECT name FROM town", "SELECT name FROM town WHERE 1", 0, "equal"),
        ("SELECT mayor FROM town", None, 1, "no such column: mayor"),
        ("DROP TABLE town", None, 3, "refused"),
        ("SELECT 1; SELECT 2", None, 3, "refused"),
    ],
)
def test_verify_tells_by_its_exit_code(database: Path, sql: str, gold: str | None, code: int, said: str) -> None:
    arguments = [sys.executable, "-m", "spftsql", "verify", "--db", str(database), "--sql", sql]
    arguments += ["--gold", gold] if gold else []
    ended = subprocess.run(arguments, capture_output=True, text=True, env={**os.environ}, check=False)
    assert (ended.returncode, said in ended.stdout) == (code, True), ended

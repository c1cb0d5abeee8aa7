"""`spftsql ask`, `chat` and `keys`, over real HTTP to an endpoint in this process."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from spftsql.cli import app
from spftsql.errors import Fault, UserError
from spftsql.serving.client import ask, ask_live, run_chat
from spftsql.serving.feedback import labelled_examples
from spftsql.serving.keys import KeyRing, create_key, read_keys
from tests.serving import ScriptedBackend, api_of, people, running, service_of, tokenizer_folder


def answers(prompt: str) -> Sequence[str]:
    if "rome" in prompt.rpartition("Question:")[2].lower():
        return ["SELECT name FROM person WHERE city = 'Rome'"]
    return ["SELECT name FROM person ORDER BY id"]


@pytest.fixture(scope="module")
def feedback(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("feedback")


@pytest.fixture(scope="module")
def served(feedback: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ScriptedBackend]]:
    folder = tmp_path_factory.mktemp("client")
    database = str(people(folder / "people.sqlite"))
    service, backend = service_of(
        tokenizer_folder(folder / "model"), {"people": database}, answers, {"serve.feedback": feedback}
    )
    with running(api_of(service)) as url:
        yield url, backend
    backend.verifier.close()


def test_ask_prints_sql_verdict_and_rows(served: tuple[str, ScriptedBackend]) -> None:
    url, _ = served
    shown = CliRunner().invoke(app, ["ask", "who is there", "--url", url])
    assert shown.exit_code == 0 and "SELECT name FROM person" in shown.output and "Bob" in shown.output
    told = CliRunner().invoke(app, ["ask", "who is there", "--url", url, "--json"])
    assert json.loads(told.output)["rows"] == [["Ada"], ["Bob"]]
    with pytest.raises(UserError, match="no database nowhere"):
        ask(url, "nowhere", "q")
    with pytest.raises(UserError, match="no endpoint answers"):
        ask("http://127.0.0.1:9", "people", "q")


def test_the_sql_is_shown_while_it_is_written(served: tuple[str, ScriptedBackend]) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    answer = ask_live(served[0], None, "who is there", console)
    assert answer["rows"] == [["Ada"], ["Bob"]] and served[1].open_streams == 0
    assert "ORDER" in console.file.getvalue()  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="no database nowhere"):
        ask_live(served[0], "nowhere", "q", console)


def test_a_conversation_goes_on_from_what_was_asked(
    served: tuple[str, ScriptedBackend], feedback: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, backend = served
    lines = iter(
        [
            *("/help", "/up", "who is there", "and in Rome?", "/up", "/fix SELECT count(*) FROM person", "/tables"),
            *("/sql SELECT 40 + 2 AS answer", "/sql DROP TABLE person", "/n 3", "/n x", "/db nowhere", "/what", ""),
        ]
    )
    written = io.StringIO()
    console = Console(file=written, width=120)

    def line(*_: object) -> str:
        text = next(lines, None)
        if text is None:
            raise EOFError
        return text

    monkeypatch.setattr(console, "input", line)
    run_chat(url, None, 1, console)
    output = written.getvalue()
    for text in (
        *("/fix SQL", "nothing has been asked yet", "Ada", "Rome", "kept as a label", "orders: id, person_id, total"),
        *("42", "refused", "/n takes a number", "no database nowhere", "/what is not known"),
    ):
        assert text in output, text
    follow_up = backend.prompts[-1]
    assert "The question before was: who is there" in follow_up and "ORDER BY id" in follow_up
    labels = {label.question: label.sql for label in labelled_examples(feedback, ["people"])}
    assert labels == {"and in Rome?": "SELECT count(*) FROM person"}


def test_keys_are_made_shown_and_revoked(tmp_path: Path) -> None:
    file = str(tmp_path / "keys.json")
    run = CliRunner()
    made = run.invoke(app, ["keys", "create", "ann", "--file", file, "--db", "sales.orders.id", "--rate", "5"])
    key = made.stdout.strip().splitlines()[-1]
    assert made.exit_code == 0 and key.startswith("spft-") and key not in Path(file).read_text()
    ring = KeyRing(Path(file))
    principal = ring.principal(key)
    assert principal is not None and principal.sees("sales") and not principal.sees("other")
    assert ring.principal(key[:-1]) is None and ring.principal("") is None
    listed = run.invoke(app, ["keys", "list", "--file", file])
    assert "ann" in listed.stdout and "valid" in listed.stdout
    assert isinstance(run.invoke(app, ["keys", "create", "ann", "--file", file]).exception, UserError)
    assert run.invoke(app, ["keys", "revoke", "ann", "--file", file]).exit_code == 0
    assert KeyRing(Path(file)).principal(key) is None
    assert read_keys(Path(file))[0].revoked is not None
    for bad in (["--scope", "everything"], ["--db", "sales."], ["--rate", "0"]):
        assert isinstance(run.invoke(app, ["keys", "create", "bob", "--file", file, *bad]).exception, UserError)


def test_a_damaged_file_of_keys_lets_nobody_in(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key, _ = create_key(file, "ann")
    file.write_text("{")
    with pytest.raises(UserError, match="cannot be used"):
        KeyRing(file).principal(key)
    file.unlink()
    assert KeyRing(file).principal(key) is None


def test_an_endpoint_that_breaks_off_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr("spftsql.serving.client._events", lambda *_: iter([("token", {"index": 0, "text": "SELECT"})]))
    with pytest.raises(Fault, match="broke off"):
        ask_live("http://x", "people", "q", console)

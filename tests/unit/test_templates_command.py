"""`spftsql templates`: what it writes and shows, and one line for what a user can get wrong."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path

import pytest

from spftsql.cli import main
from spftsql.config import SynthesisConfig
from spftsql.synthesis.filling import synthesize
from spftsql.synthesis.library import library, read_templates, with_library

SHOP = Path(__file__).parents[1] / "fixtures" / "templates" / "shop.sql"
LABELS = [
    "SELECT name FROM customer WHERE City = 'Turin'",
    "SELECT name FROM customer WHERE City = 'Bern'",
    'SELECT customer.name, COUNT(*) FROM customer JOIN "order" ON customer.id = customer_id GROUP BY customer.id',
    "SELECT broken",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    with sqlite3.connect(folder / "shop.sqlite") as connection:
        connection.executescript(SHOP.read_text(encoding="utf-8"))
    rows = [{"db_id": "shop", "question": "?", "sql": sql} for sql in LABELS]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["spftsql", "templates", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    code = ended.value.code
    return (code if isinstance(code, int) else 0), captured.out, captured.err


def test_extract_then_show(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "templates.jsonl"
    words = ("extract", "--benchmark", "jsonl", "--root", str(root), "--out", str(file))
    code, out, _ = run(monkeypatch, capsys, *words)
    assert code == 0
    assert "2 templates of 3 of 4 statements" in out
    assert "1 without: no column broken" in out
    text = file.read_text(encoding="utf-8")
    assert [(template.count, template.sql) for template in read_templates(file)] == [
        (2, "SELECT col_text_1 WHERE col_text_2 = value_1"),
        (1, "SELECT col_text_1, COUNT(*) GROUP BY col_number_key_2"),
    ]
    for word in ("customer", "City", '"name": "name"', "order_", "Turin", "shop"):
        assert word not in text
    code, out, _ = run(monkeypatch, capsys, "show", str(file), "--hardness", "easy")
    assert code == 0
    assert "66.67%" in out and "1 of 1 templates" in out
    code, out, _ = run(monkeypatch, capsys, "show", "library", "--limit", "3")
    assert code == 0 and f"3 of {len(library())} templates" in out


def test_a_file_of_another_database_fills_this_one(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from spftsql.databases.reflection import reflect
    from spftsql.synthesis.command import extract_templates

    file = tmp_path / "templates.jsonl"
    extract_templates("jsonl", root, "train", file, Console(quiet=True))
    path = tmp_path / "zoo.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(
            """CREATE TABLE keeper (nr INTEGER PRIMARY KEY, surname TEXT, town TEXT);
            CREATE TABLE beast (nr INTEGER PRIMARY KEY, keeper INTEGER REFERENCES keeper (nr));
            INSERT INTO keeper VALUES (1, 'Ono', 'Rome'), (2, 'Poe', 'Oslo');
            INSERT INTO beast VALUES (7, 1), (8, 1);"""
        )
    made = synthesize(read_templates(file), {"zoo": reflect("zoo", path)}, {"zoo": path}, 9, 0, 0.0, None, ())
    found = {statement.sql for statement in made}
    assert "SELECT surname FROM keeper WHERE town = 'Rome'" in found
    assert any("JOIN beast ON keeper.nr = beast.keeper GROUP BY keeper.nr" in sql for sql in found)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "none.jsonl"), "no file none.jsonl"),
        (("show", "library", "--hardness", "tough"), "unknown hardness tough"),
        (("extract", "--benchmark", "jsonl", "--root", "ROOT", "--out", "none/x"), "cannot be written"),
        (("extract", "--benchmark", "wiki", "--root", "ROOT", "--out", "x"), "unknown benchmark wiki"),
        (("extract", "--benchmark", "jsonl", "--root", "none", "--out", "x"), "none is not a directory"),
        (("extract", "--benchmark", "jsonl", "--root", "ROOT", "--split", "dev", "--out", "x"), "dev.jsonl"),
    ],
)
def test_errors_are_one_line(
    words: tuple[str, ...],
    message: str,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(monkeypatch, capsys, *(str(root) if word == "ROOT" else word for word in words))
    assert code == 2
    assert message in err and len(err.splitlines()) == 1


def test_the_share_of_the_library(root: Path, tmp_path: Path) -> None:
    from rich.console import Console

    from spftsql.synthesis.command import extract_templates

    assert SynthesisConfig().library == 0
    file = tmp_path / "templates.jsonl"
    extract_templates("jsonl", root, "train", file, Console(quiet=True))
    own = read_templates(file)
    assert with_library([], 0) == library()
    assert with_library(own, 0) == own
    for share in (0.25, 0.9, 1.0):
        mixed = with_library(own, share)
        ids = {template.id for template in own}
        assert len({template.id for template in mixed}) == len(mixed)
        weight = sum(template.count for template in mixed if template.id not in ids)
        assert weight / sum(template.count for template in mixed) == pytest.approx(share, abs=0.001)

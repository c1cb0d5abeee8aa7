"""Results of golds are kept on disk between scorings, and never change a verdict."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest

from spftsql.evaluation.score_result import ScoreResult
from spftsql.evaluation.scoring import ScoreOptions, score
from spftsql.sandbox.execute import Sandbox
from spftsql.sandbox.result import Execution

GOLDS = ["SELECT max(x) FROM t", "SELECT count(*) FROM t", "SELECT broken FROM t", "SELECT random() FROM t"]
ANSWERS = ["SELECT 2", "SELECT 3", "SELECT 1", "SELECT 1"]
UNKEPT = GOLDS[3]  # gives another result each time


def fill(path: Path, largest: int) -> None:
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"CREATE TABLE t (x); INSERT INTO t VALUES (1), ({largest})")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPFTSQL_CACHE", str(tmp_path / "cache"))
    fill(tmp_path / "db.sqlite", 2)
    rows = [{"db_id": "db", "question": "q", "sql": sql} for sql in GOLDS]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "answers.sql").write_text("\n".join(ANSWERS))
    return tmp_path


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements that are executed from now on."""
    seen: list[str] = []

    execute = Sandbox.execute

    def watched(self: Sandbox, database: Any, statements: Sequence[str], *rest: Any) -> list[Execution]:
        seen.extend(statements)
        return execute(self, database, statements, *rest)

    monkeypatch.setattr(Sandbox, "execute", watched)
    return seen


def scored(root: Path, **options: Any) -> ScoreResult:
    options = {"workers": 1, **options}
    return score(ScoreOptions("jsonl", root, root / "answers.sql", **options), lambda title: nullcontext(print_nothing))


def print_nothing(done: int, total: int) -> None:
    pass


def test_golds_are_executed_once_for_many_scorings(root: Path, executed: list[str]) -> None:
    cold = scored(root)
    assert set(GOLDS) <= set(executed)
    executed.clear()
    warm = scored(root)
    assert set(executed) & set(GOLDS) == {UNKEPT}
    assert set(ANSWERS) <= set(executed)
    assert warm == cold
    assert [item.verdict for item in warm.items] == ["equal", "different", "unverifiable", "unverifiable"]


def test_nothing_is_kept_where_it_is_not_wanted(root: Path, executed: list[str]) -> None:
    scored(root, cache=False)
    assert not (root / "cache").exists()
    scored(root)
    executed.clear()
    scored(root, cache=False)
    assert set(GOLDS) <= set(executed)


def test_a_changed_database_has_results_of_its_own(root: Path) -> None:
    assert scored(root).items[0].verdict == "equal"
    fill(root / "db.sqlite", 7)
    assert scored(root).items[0].verdict == "different"
    fill(root / "db.sqlite", 2)
    assert scored(root).items[0].verdict == "equal"


def test_limits_have_results_of_their_own(root: Path) -> None:
    from spftsql.evaluation.scoring import limits

    (root / "test.jsonl").write_text(json.dumps({"db_id": "db", "question": "q", "sql": "SELECT x FROM t"}))
    (root / "answers.sql").write_text("SELECT x FROM t")
    assert scored(root).items[0].verdict == "equal"
    assert scored(root, limits=limits(30, 1, 2048)).items[0].verdict == "unverifiable"


@pytest.mark.parametrize("damage", ["half", "noise", "values", "directory"])
def test_a_damaged_store_changes_no_verdict(root: Path, damage: str) -> None:
    cold = scored(root)
    (store,) = (root / "cache").rglob("results.sqlite")
    content = store.read_bytes()
    if damage == "half":
        store.write_bytes(content[: len(content) // 2])
    elif damage == "noise":
        store.write_bytes(content[:100] + bytes(byte ^ 0x5A for byte in content[100:]))
    elif damage == "values":  # what the gold gave is another number now, and the file is whole
        with closing(sqlite3.connect(store)) as connection, connection:
            for key, value in connection.execute("SELECT key, value FROM results").fetchall():
                connection.execute("UPDATE results SET value = ? WHERE key = ?", (value.replace(b"\x02", b"\x07"), key))
    else:
        for file in store.parent.glob("results.sqlite*"):
            file.unlink()
        store.mkdir()
    assert scored(root) == cold

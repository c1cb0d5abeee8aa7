"""`spftsql pairs`: what a run's pairs answer, and that a condition can do nothing but filter."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spftsql.cli import app
from spftsql.errors import UserError
from spftsql.records import PairRow, write_records
from spftsql.selfplay.pairs_command import query_pairs


def row(number: int, round_: int, kept: bool) -> PairRow:
    return PairRow(
        id=f"synthetic/{round_}/{number}",
        round=round_,
        db_id="shop",
        database="c0ffee",
        template="t",
        bindings='{"value_1": "Łódź"}',
        seed=7,
        sql=f"SELECT {number}",
        sql_status="ran",
        sql_rows=1,
        sql_ms=0.5,
        prompt="p",
        question_model="q",
        question_seed=3,
        voter=None,
        candidates=json.dumps([{"text": "what?", "missing": [], "agreement": None, "votes": []}]),
        question=f"what is [{number}] in Łódź?" if kept else None,
        votes=0,
        votes_ms=0.0,
        confidence=number / 10 if kept else None,
        part="train" if kept else "",
        kept=kept,
        reason="" if kept else "empty",
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for round_ in (1, 2, 10):
        write_records(
            tmp_path / "pairs" / f"round-{round_}.parquet", [row(n, round_, n < 4) for n in range(5)], PairRow
        )
    return tmp_path


def invoke(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["pairs", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def test_rows_come_by_round_and_as_many_as_wanted(run: Path) -> None:
    names, rows = query_pairs(run, None, None, 100)
    assert names[:3] == ["round", "part", "reason"] and len(rows) == 15
    assert [row[0] for row in rows] == [1] * 5 + [2] * 5 + [10] * 5
    assert len(query_pairs(run, None, None, 3)[1]) == 3


def test_conditions_and_columns_are_sql(run: Path) -> None:
    _, rows = query_pairs(run, "kept AND confidence >= 0.3 -- well said", "id, candidates->'$[0]'->>'text'", 100)
    assert rows == [(f"synthetic/{round_}/3", "what?") for round_ in (1, 2, 10)]
    assert query_pairs(run, None, "count(*)", 5)[1] == [(15,)]


def test_an_aggregate_beside_columns_counts_by_them(run: Path) -> None:
    _, rows = query_pairs(run, None, "kept, count(*)", 100)
    assert rows == [(False, 3), (True, 12)]
    assert query_pairs(run, "NOT kept", "reason, count(*)", 100)[1] == [("empty", 3)]


def test_table_json_and_csv(run: Path) -> None:
    assert "what is [3] in Łódź?" in invoke(run, "--where", "kept AND confidence = 0.3", "--columns", "question")
    lines = invoke(run, "--where", "NOT kept", "--columns", "id, reason", "--json").splitlines()
    assert json.loads(lines[0]) == {"id": "synthetic/1/4", "reason": "empty"} and len(lines) == 3
    header, first, *_ = csv.reader(invoke(run, "--csv", "--columns", "id, question").splitlines())
    assert (header, first) == (["id", "question"], ["synthetic/1/0", "what is [0] in Łódź?"])


HOSTILE = [
    "1=1); DROP TABLE pairs; --",
    "1=1) LIMIT 1; COPY pairs TO 'FILE'; --",
    "id IN (SELECT content FROM read_text('SECRET'))",
    "id IN (SELECT * FROM 'SECRET')",
    "id IN (SELECT * FROM read_csv_auto('https://example.org/x.csv'))",
    "1=1) UNION ALL SELECT * FROM read_parquet('SECRET'); --",
    "1=1); SET enable_external_access = true; --",
    "1=1); ATTACH 'FILE' AS f; --",
    "1=1); INSTALL httpfs; --",
]


@pytest.mark.parametrize("where", HOSTILE)
def test_a_condition_reads_and_writes_nothing_else(run: Path, where: str) -> None:
    (run / "secret.csv").write_text("id\nsynthetic/1/0\n")
    before = sorted(path for path in run.rglob("*"))
    hostile = where.replace("SECRET", str(run / "secret.csv")).replace("FILE", str(run / "new.db"))
    with pytest.raises(UserError) as error:
        query_pairs(run, hostile, None, 10)
    assert "\n" not in str(error.value)
    assert sorted(path for path in run.rglob("*")) == before
    assert len(query_pairs(run, None, None, 100)[1]) == 15


def test_mistakes_get_one_line_that_names_the_columns(run: Path, tmp_path: Path) -> None:
    for where in ("confidnce > 1", "kept AND", "(", "'"):
        with pytest.raises(UserError, match=r"^not a condition over pairs: .*columns: id, round, db_id"):
            query_pairs(run, where, None, 10)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no pairs yet"):
        query_pairs(tmp_path / "empty", None, None, 10)
    with pytest.raises(UserError, match="not a directory"):
        query_pairs(tmp_path / "nothing", None, None, 10)
    (run / "pairs" / "round-3.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot be read"):
        query_pairs(run, None, None, 10)

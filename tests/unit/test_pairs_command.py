"""`spftsql pairs`: what a run's pairs answer, and that a condition can do nothing but filter."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from spftsql.cli import app
from spftsql.errors import UserError
from spftsql.records import PairRow, read_records, to_table, write_records
from spftsql.selfplay.lineage import pair_files
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
        prompt_builder="p",
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
        sql_engine="sqlite 3.40.1",
        question_prompt="5ca1ab1e",
        questions_written_ms=120.5,
    )


SINCE = ["sql_engine", "question_prompt", "questions_written_ms", "votes_written_ms"]
NAMED_BEFORE = {"prompt_builder": "prompt"}


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


def old_file(path: Path, round_: int, rows: int = 1) -> None:
    """A file as runs wrote it before a row named its own prompt, the engine, and what generation took."""
    table = to_table([row(n, round_, True) for n in range(rows)], PairRow)
    named = table.rename_columns([NAMED_BEFORE.get(name, name) for name in table.column_names])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(named.drop_columns(SINCE), path)


def test_files_of_earlier_versions_are_read_beside_new_ones(run: Path, tmp_path: Path) -> None:
    old_file(run / "pairs" / "round-3.parquet", 3)
    wanted = "round, prompt_builder, question_prompt, questions_written_ms, votes_written_ms, sql_engine"
    _, rows = query_pairs(run, "kept AND confidence = 0 AND round IN (2, 3)", wanted, 100)
    assert rows == [(2, "p", "5ca1ab1e", 120.5, None, "sqlite 3.40.1"), (3, None, None, None, None, None)]
    assert query_pairs(run, "round = 3", "prompt", 100)[1] == [("p",)]  # as that file calls the hash of the builder
    rows_of = [one for file in pair_files(run) for one in read_records(file, PairRow) if one.id.endswith("/0")]
    assert [one.question_prompt for one in rows_of] == ["5ca1ab1e", "5ca1ab1e", None, "5ca1ab1e"]
    old_file(tmp_path / "old" / "pairs" / "round-1.parquet", 1)
    assert len(query_pairs(tmp_path / "old", "question_prompt IS NULL", "*", 100)[1]) == 1


def test_what_is_no_file_of_a_round_is_passed_over(run: Path) -> None:
    for name in ("round-x.parquet", "round-.parquet", "round-1 (copy).parquet", "round-²³.parquet"):
        (run / "pairs" / name).write_bytes(b"not ours")
    assert len(query_pairs(run, None, None, 100)[1]) == 15


def test_json_has_null_for_what_is_no_number(run: Path) -> None:
    columns = (
        "id, 'nan'::DOUBLE AS a, [1.5, '-inf'::DOUBLE] AS b, {'x': 'inf'::FLOAT} AS c, MAP {DATE '2024-01-02': 1} AS d"
    )
    for line in invoke(run, "--columns", columns, "--json").splitlines():
        found = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert list(found.values())[1:] == [None, [1.5, None], {"x": None}, {"2024-01-02": 1}]


def test_one_form_at_a_time_and_a_condition_of_blanks_is_none(run: Path) -> None:
    result = CliRunner().invoke(app, ["pairs", str(run), "--json", "--csv"])
    assert isinstance(result.exception, UserError) and "--json and --csv: choose one" in str(result.exception)
    assert len(query_pairs(run, "  \n", None, 100)[1]) == 15
    assert query_pairs(run, "round = 7", None, 100)[1] == []
    assert "0 rows" in invoke(run, "--where", "round = 7")
    assert "4 rows (--limit 4)" in invoke(run, "--limit", 4)


def test_conditions_look_into_bindings_candidates_and_votes(run: Path) -> None:
    assert len(query_pairs(run, "bindings->>'$.value_1' = 'Łódź' AND voter IS NULL", "id", 100)[1]) == 15
    assert query_pairs(run, "reason = 'empty' AND NOT kept AND sql ILIKE 'select 4'", "count(*)", 5)[1] == [(3,)]
    assert query_pairs(run, "sql_ms > 1 OR questions_written_ms > 121", "count(*)", 5)[1] == [(0,)]


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

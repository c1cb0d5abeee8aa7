"""Near misses: one edit from the gold, nearest first, and nothing but what execution shows to be wrong."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from spftsql.config import DatabaseConfig, PromptConfig
from spftsql.databases.catalogue import open_catalogue
from spftsql.databases.schema import Column, Schema, Table
from spftsql.errors import Fault
from spftsql.execution import LocalExecution
from spftsql.progress import Reporter
from spftsql.records import Example, Mode, Verdict, VerificationRequest, read_records, write_records
from spftsql.runs import Run
from spftsql.selfplay.candidates import NEAR_MISS
from spftsql.selfplay.near_misses import near_misses, nearest
from spftsql.selfplay.play import play_rows
from spftsql.selfplay.stages import Stages
from spftsql.synthesis.canonical import parse
from spftsql.usage import Use
from tests import trainings

DATABASE = """
CREATE TABLE town (name TEXT PRIMARY KEY, mayor TEXT, people INT, area INT);
INSERT INTO town VALUES ('Ulm', 'Ada', 100, 5), ('Bonn', 'Bob', 300, 7), ('Trier', 'Cem', 200, 9);
"""
GOLDS = {
    "towns": "SELECT name FROM town WHERE people > 150 AND area < 8",
    "most": "SELECT MAX(people) FROM town",
    "ulm": "SELECT people FROM town WHERE name = 'Ulm'",
    "not": "SELECT name FROM town WHERE NOT mayor IN ('Ada')",
}
QUESTIONS = [Example(name, "geo", f"tell me {name} ?", sql, "synthetic", "t") for name, sql in GOLDS.items()]


@pytest.fixture(params=["plain", "placeholders"])
def stages(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stages]:
    file = tmp_path / "geo.sqlite"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.executescript(DATABASE)
    catalogue = open_catalogue([DatabaseConfig(name="geo", url=str(file))])
    prompt = PromptConfig(schema_text="none", sql_style="spaced", placeholders=request.param == "placeholders")
    config = trainings.config_of().model_copy(update={"run_dir": tmp_path / "runs", "prompt": prompt})
    run = Run(config)
    execution = LocalExecution(config, {name: database.source for name, database in catalogue.items()})
    made = Stages(config, run, execution, catalogue, Reporter())
    made.use_prompts(str(trainings.base_model(tmp_path)))
    yield made
    run.close()


def test_nearest_first_and_in_the_way_golds_are_written(stages: Stages) -> None:
    schema = stages.catalogue["geo"].schema
    found = nearest(GOLDS["towns"], schema, seed=0)
    assert len(found) == len(set(found)) > 10 and GOLDS["towns"] not in found
    one_node = {
        "SELECT name FROM town WHERE people > 150 OR area < 8",
        "SELECT name FROM town WHERE people >= 150 AND area < 8",
        "SELECT mayor FROM town WHERE people > 150 AND area < 8",
        "SELECT name FROM town WHERE people > 151 AND area < 8",
        "SELECT DISTINCT name FROM town WHERE people > 150 AND area < 8",
    }
    further = [found.index("SELECT name FROM town WHERE people > 150"), found.index("SELECT name FROM town")]
    assert max(map(found.index, one_node)) < further[0] < further[1]
    assert nearest(GOLDS["towns"], schema, seed=0) == found
    other = nearest(GOLDS["towns"], schema, seed=1)
    assert other != found and sorted(other) == sorted(found)
    assert "SELECT name FROM town WHERE mayor NOT IN ('Bob')" in nearest(GOLDS["not"], schema, seed=0)
    assert nearest("SELECT FROM", schema, seed=0) == []


def test_in_the_dialect_of_the_database() -> None:
    columns = tuple(
        Column(name, kind, "") for name, kind in (("name", "text"), ("mayor", "text"), ("people", "number"))
    )
    schema = Schema("db", "postgres", (Table("town", columns),))
    gold = "SELECT name FROM town WHERE CAST(people AS TEXT) ILIKE '1%'"
    found = nearest(gold, schema, seed=0)
    assert "SELECT mayor FROM town WHERE CAST(people AS TEXT) ILIKE '1%'" in found
    assert gold not in found


def test_what_gives_the_golds_result_is_no_near_miss(stages: Stages) -> None:
    found = near_misses(stages, QUESTIONS, 2)
    assert {name: len(misses) for name, misses in found.items()} == dict.fromkeys(GOLDS, 2)
    for name, misses in found.items():
        assert len({miss.text for miss in misses}) == 2
        for miss in misses:
            assert miss.verdict.status in ("different", "error") and miss.candidate == NEAR_MISS
            assert miss.sql != GOLDS[name] and parse(miss.sql)
            assert stages.prompts.parse_sql(miss.text, stages.catalogue["geo"], miss.example.question) == miss.sql
    every = near_misses(stages, QUESTIONS[:1], 100)["towns"]
    texts = {miss.sql for miss in every}
    assert "SELECT mayor FROM town WHERE people > 150 AND area < 8" in texts
    assert "SELECT name FROM town WHERE people > 151 AND area < 8" not in texts  # the same towns
    assert [miss.sql for miss in every[:2]] == [miss.sql for miss in found["towns"]]


def test_none_are_wanted_by_default(stages: Stages) -> None:
    assert near_misses(stages, QUESTIONS, 0) == {} == near_misses(stages, [], 2)
    assert not list(stages.run.stages.glob("verify-*"))


def test_a_text_that_stands_for_the_gold_is_no_near_miss(stages: Stages) -> None:
    """Where the question says a value, only its placeholder is written, and other letters make no difference."""
    texts = [miss.text for miss in near_misses(stages, [QUESTIONS[2]], 100)["ulm"]]
    assert len(texts) == len(set(texts))
    gold = stages.sql_row(QUESTIONS[2]).chosen
    assert gold not in texts
    assert ("uLM" in " ".join(texts)) == ("Ulm" in gold)


@pytest.mark.parametrize("stages", ["plain"], indirect=True)
@pytest.mark.parametrize("status", ["timeout", "truncated", "unverifiable", "fault"])
def test_what_is_not_known_to_be_wrong_is_no_near_miss(
    stages: Stages, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(source: Path, target: Path, progress: object) -> Use:
        fault = "the sandbox is gone" if status == "fault" else None
        found = [
            Verdict(one.id, "geo", "error" if fault else status, "", 1.0, 0, False, "", "sqlite", fault)
            for one in read_records(source, VerificationRequest)
        ]
        write_records(target / "verdicts.parquet", found, Verdict)
        return Use("verifiers", 1, 1.0, 1.0)

    monkeypatch.setattr(stages.execution, "verify", verify)
    if status == "fault":
        with pytest.raises(Fault, match="statements could not be verified"):
            near_misses(stages, QUESTIONS, 2)
    else:
        assert near_misses(stages, QUESTIONS, 2) == {name: [] for name in GOLDS}


def test_their_rows_say_where_they_are_from(stages: Stages) -> None:
    misses = [miss for found in near_misses(stages, QUESTIONS, 2).values() for miss in found]
    modes: tuple[Mode, ...] = ("spin", "dpo", "spft-a", "spft-b")
    for mode in modes:
        rows, left_out = play_rows(mode, misses, stages.sql_row, {"most"})
        assert {row.reward for row in rows} == {1} and len(rows) == 6 and left_out == {"quarantined": 2}
        assert rows[0].id == f"towns/{mode}/{NEAR_MISS}-0" and rows[0].rejected == misses[0].text
    golds, _ = play_rows("sft", misses, stages.sql_row)
    assert {(row.rejected, row.reward) for row in golds} == {(None, None)} and len(golds) == 8

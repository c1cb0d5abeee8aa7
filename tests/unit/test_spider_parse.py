"""Hardness from the parse that Spider publishes, against the one that is counted on the statement's own tree."""

import json
from collections import Counter
from pathlib import Path

import pytest

from spftsql.evaluation.hardness import spider_hardness
from spftsql.evaluation.sources import read_split
from spftsql.evaluation.spider_parse import parsed_hardness


def test_the_published_parse_and_the_statement_give_the_same_level(data_root: Path) -> None:
    rows = json.loads((data_root / "spider" / "dev.json").read_text())
    levels = [(parsed_hardness(row["sql"]), spider_hardness(row["query"])) for row in rows]
    assert [pair for pair in levels if pair[0] != pair[1]] == []
    # The numbers that Spider's own evaluator prints for its development set.
    assert Counter(level for level, _ in levels) == {"easy": 248, "medium": 446, "hard": 174, "extra": 166}


@pytest.mark.parametrize("parse", [None, "SELECT 1", 3, [], {}, {"from": {}}, {"from": {"conds": [1]}, "where": []}])
def test_what_is_no_parse_has_no_level(parse: object) -> None:
    assert parsed_hardness(parse) is None


def test_a_gold_file_with_another_statement_does_not_keep_the_level_of_the_first(tmp_path: Path) -> None:
    empty = {"conds": [], "table_units": [["table_unit", 1]]}
    parse = {"from": empty, "select": [False, [[0, []]]], "where": [], "groupBy": [], "having": [], "orderBy": []}
    parse |= {"limit": None, "intersect": None, "union": None, "except": None}
    row = {"db_id": "towns", "question": "which?", "query": "SELECT name FROM town", "sql": parse}
    (tmp_path / "dev.json").write_text(json.dumps([row, row]))
    other = "SELECT name FROM town WHERE size > 1 ORDER BY name"
    (tmp_path / "dev_gold.sql").write_text(f"SELECT  name FROM town\ttowns\n{other}\ttowns\n")
    assert [question.hardness for question in read_split("spider", tmp_path).rows] == ["easy", ""]

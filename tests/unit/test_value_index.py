"""Values that a question mentions are found in the database, in whatever form the question says them."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spftsql.databases.files import file_hash
from spftsql.databases.reflection import reflect
from spftsql.databases.schema import Schema
from spftsql.errors import Fault, UserError
from spftsql.linking import value_index
from spftsql.linking.value_index import ValueIndex, open_index
from spftsql.linking.value_matching import ValueMatch, matching_values

SCRIPT = """
CREATE TABLE city (id INTEGER PRIMARY KEY, name TEXT, state TEXT, founded DATE, note TEXT, code);
INSERT INTO city VALUES (1, 'New York', 'NY', '1624-05-01', 'x', 7), (2, 'Köln', 'IN', '0050-01-01', 'York', 'K 8');
INSERT INTO city VALUES (3, 'São Paulo', 'SP', NULL, 'O''Hare', NULL), (4, 'Łódź', 'or', NULL, 'Harbour dogs', 'AB-12');
INSERT INTO city VALUES (5, ' APG', 'McDonald', NULL, '{long}', X'00FF');
INSERT INTO city VALUES (6, '北京', '', NULL, CAST(X'FFFE41' AS TEXT), 1.5);
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPFTSQL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "values"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cities.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(SCRIPT.replace("{long}", "word " * 40))
    connection.close()
    return path


def index_of(file: Path) -> ValueIndex:
    return open_index(file_hash(file), reflect("cities", file), file)


def found(index: ValueIndex, question: str) -> list[tuple[str, str]]:
    return [(match.column, match.value) for match in matching_values(question, index)]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Who lives in New York?", [("name", "New York")]),  # the longest: no York of another column
        ("Who lives in NEW  york?", [("name", "New York")]),
        ("population of koln", [("name", "Köln")]),
        ("is Sao Paulo large", [("name", "São Paulo")]),
        ("flights from APG", [("name", " APG")]),
        ("what about O'Hare", [("note", "O'Hare")]),
        ("which harbour dog is it", [("note", "Harbour dogs")]),
        ("founded on 1624-05-01 ?", [("founded", "1624-05-01")]),
        ("item ab-12 please", [("code", "AB-12")]),
        ("all of 北京 today", [("name", "北京")]),
        ("在北京有多少家公司", [("name", "北京")]),
        ("what of the NY北京 flights", [("name", "北京"), ("state", "NY")]),
        ("京北有多少家公司", []),
        ("the mcdonnald of it", [("state", "McDonald")]),
        ("towns of IN by size", [("state", "IN")]),
        ("towns in or near it", []),
        ("", []),
        ("???", []),
        ("York", [("note", "York")]),
    ],
)
def test_a_value_is_found_as_people_say_it(file: Path, question: str, expected: list[tuple[str, str]]) -> None:
    assert found(index_of(file), question) == expected


def test_most_of_a_value_is_enough_and_counts_less_than_all_of_it(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        rows = [(9, "Sputnik orbital one", "Kick"), (10, "Sputnik and its further missions", None)]
        connection.executemany("INSERT INTO city (id, name, note) VALUES (?, ?, ?)", rows)
    connection.close()
    matches = matching_values("the kick of the orbital Sputnik", index_of(file))
    assert [(match.value, match.how) for match in matches] == [("Kick", "folded"), ("Sputnik orbital one", "part")]


LOCAL = ["公司甲", "トヨタ自動車株式会社", "サンフランシスコ国際空港", "大都市", "서울", "กรุงเทพมหานคร"]
LOCAL += ["Москва", "Иванов"]


@pytest.mark.parametrize(
    ("question", "value"),
    [
        ("有多少人在公司甲工作", "公司甲"),
        ("トヨタ自動車株式会社の工場はいくつ", "トヨタ自動車株式会社"),
        ("サンフランシスコ国際空港からの便", "サンフランシスコ国際空港"),
        ("서울에 사는 학생", "서울"),
        ("บริษัทในกรุงเทพมหานครมีกี่แห่ง", "กรุงเทพมหานคร"),
        ("сколько людей в Москве", "Москва"),
        ("заказы Иванова", "Иванов"),
        ("заказы Ивана", None),
        ("大都の人口", None),
    ],
)
def test_values_in_scripts_without_blanks_and_with_endings(file: Path, question: str, value: str | None) -> None:
    with sqlite3.connect(file) as connection:
        connection.executemany("INSERT INTO city (name) VALUES (?)", [(one,) for one in LOCAL])
    connection.close()
    assert [match.value for match in matching_values(question, index_of(file))] == ([value] if value else [])


def test_place_and_form_of_a_match(file: Path) -> None:
    question = "Is new york in NY?"
    assert matching_values(question, index_of(file)) == [
        ValueMatch("city", "state", "NY", "verbatim", 1.0, 15, 17, 1),
        ValueMatch("city", "name", "New York", "folded", 0.99, 3, 11, 1),
    ]


def test_several_threads_ask_at_once(tmp_path: Path) -> None:
    path = tmp_path / "many.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE city (name TEXT)")
        rows = [(f"{first} {second} town",) for first in range(200) for second in range(50)]
        connection.executemany("INSERT INTO city VALUES (?)", rows)
    connection.close()
    index = index_of(path)
    alone = index.with_words(["town", "3"], 50)  # long enough for the others to come while one is at it
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: index.with_words(["town", "3"], 50), range(100))) == [alone] * 100


def test_the_index_is_built_once_for_a_content(file: Path, cache: Path) -> None:
    content, schema = file_hash(file), reflect("cities", file)
    open_index(content, schema, file).close()
    assert file_hash(file) == content
    files = list(cache.iterdir())
    again = open_index(content, schema, file.with_name("not there"))  # not opened again
    assert found(again, "NY") == [("state", "NY")] and list(cache.iterdir()) == files
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE city SET state = 'NZ' WHERE state = 'NY'")
    connection.close()
    assert found(index_of(file), "NZ") == [("state", "NZ")] and len(list(cache.iterdir())) == 2


def test_a_damaged_file_is_made_again(file: Path, cache: Path) -> None:
    index_of(file).close()
    (path,) = cache.iterdir()
    path.write_bytes(b"SQLite format 3\x00" + b"damage" * 1000)
    assert found(index_of(file), "NY") == [("state", "NY")]
    path.write_bytes(path.read_bytes()[:8192] + b"\xff" * (path.stat().st_size - 8192))
    with pytest.raises(Fault, match="remove it"):
        found(index_of(file), "NY and New York, and something more")


def test_a_cache_that_cannot_be_written_says_what_to_do(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPFTSQL_CACHE", str(file / "below a file"))
    with pytest.raises(UserError, match="set SPFTSQL_CACHE to a directory"):
        index_of(file)


def test_what_is_kept_is_bounded(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sqlite3.connect(file) as connection:
        rows = [(f"only{i:05d}", "often" if i % 2 else "sometimes") for i in range(3000)]
        connection.executemany("INSERT INTO city (name, note) VALUES (?, ?)", rows)
    connection.close()
    monkeypatch.setattr(value_index, "_LEAST_PER_COLUMN", 4)
    monkeypatch.setattr(value_index, "_PER_DATABASE", 20)
    index = index_of(file)
    assert [cell.count for cell in index.with_keys(["often"])] == [1500]
    assert index.with_keys(["only 02999"]) == []
    monkeypatch.setattr(value_index, "_ROWS", 1_000)
    cells = ValueIndex(_built(file, reflect("cities", file))).with_keys(["often"])
    assert [cell.count for cell in cells] == [497]  # of the first thousand rows by primary key


def _built(file: Path, schema: Schema) -> Path:
    path = file.with_suffix(".index")
    with value_index.reader(file) as query:
        value_index._build(path, schema, query)
    return path


@pytest.mark.parametrize("script", ["CREATE TABLE t (a TEXT)", "CREATE TABLE t (a INT); INSERT INTO t VALUES (1)"])
def test_databases_without_texts_have_an_empty_index(tmp_path: Path, script: str) -> None:
    path = tmp_path / "empty.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(script)
    connection.close()
    assert found(index_of(path), "a, 1 or something else") == []


def test_odd_names_and_values(tmp_path: Path) -> None:
    path = tmp_path / "odd.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute('CREATE TABLE "a ""b"" – ü" ("select" TEXT, "x.y; --" TEXT)')
        connection.execute('INSERT INTO "a ""b"" – ü" VALUES (?, ?)', ("it\"s OR 'so'", "⑴⑵ ½ ﬁne"))
    connection.close()
    index = index_of(path)
    assert found(index, "was it\"s or 'so' meant") == [("select", "it\"s OR 'so'")]
    assert matching_values("½ ﬁne ⑴⑵ 'x' \"y\" AND NOT (a OR b) \x00 \ud800 * ^ NEAR(", index) is not None


def test_a_very_long_question_is_answered_soon(file: Path) -> None:
    words = " ".join(f"nonsense{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}word" for i in range(8_000))
    assert found(index_of(file), f"New York {words} {'x' * 50_000}")[0] == ("name", "New York")


def test_duckdb_values_are_found_the_same_way(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    path = tmp_path / "cities.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            "CREATE TABLE city (id INT PRIMARY KEY, name VARCHAR, founded DATE, big BOOLEAN, size DECIMAL)"
        )
        connection.execute("INSERT INTO city VALUES (1, 'New York', DATE '1624-05-01', true, 8.5)")
    index = open_index("content", reflect("cities", path), path)
    assert found(index, "was new york founded on 1624-05-01") == [("founded", "1624-05-01"), ("name", "New York")]

"""Results that are kept: what counts as the same statement, and a store that is shared, killed, damaged and full."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spftsql.config import SandboxConfig
from spftsql.sandbox.result import Execution
from spftsql.verification.cache import (
    ResultCache,
    ResultStore,
    _key_prefix,
    canonical_sql,
    decode,
    encode,
    engine_version,
    repeatable,
    result_key,
    source_hash,
)
from tests.small_disk import small_disk

LIMITS = SandboxConfig()
RESULT = Execution("ran", "", ("a", "b"), [(1, "x\udc80"), (None, 2.5), (b"\0", -(2**63))], 0.25, "sqlite 3.54.1")


def key(sql: str, content: str = "c", limits: SandboxConfig = LIMITS, engine: str = "sqlite 3.54.1") -> bytes:
    return result_key(content, sql, limits, engine)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("SELECT a FROM t", "  SELECT\n\ta   FROM t ; "),
        ("SELECT a FROM t", "SELECT a -- the name\nFROM t;; -- done"),
        ("SELECT a FROM t", "SELECT /* all; of 'them' */ a FROM t"),
        ("SELECT 'a  b' FROM t", "SELECT  'a  b'  FROM  t"),
        ("SELECT '-- it''s  ;' FROM t", "SELECT '-- it''s  ;'\n FROM t"),
    ],
)
def test_statements_that_differ_in_blanks_alone_are_the_same(one: str, other: str) -> None:
    assert canonical_sql(one) == canonical_sql(other)
    assert key(one) == key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("SELECT 'a b'", "SELECT 'a  b'"),
        ('SELECT "a b" FROM t', 'SELECT "a  b" FROM t'),
        ("SELECT [a b] FROM t", "SELECT [a  b] FROM t"),
        ("SELECT $$a b$$", "SELECT $$a  b$$"),
        (r"SELECT E'\' , 'a b'", r"SELECT E'\' , 'a  b'"),
        ("SELECT 'a'\n'b'", "SELECT 'a' 'b'"),
        ("SELECT 'a' -- x\n'b'", "SELECT 'a' 'b'"),
        ("SELECT 1 /* /* */ , 2 */", "SELECT 1"),
        ("SELECT 1\u00a0+ 1", "SELECT 1 + 1"),
        ("SELECT 1\v+ 1", "SELECT 1 + 1"),
        ("SELECT a FROM t", "SELECT A FROM t"),
        ("SELECT 1", "SELECT 1; SELECT 1"),
        ("SELECT 1 /* open", "SELECT 1"),
    ],
)
def test_statements_that_may_differ_stay_apart(one: str, other: str) -> None:
    assert key(one) != key(other)


PIECES = ["SELECT", "1", "a", ",", "'a  b'", "'it''s'", '"a  b"', "`c`", "(", ")", ";", "||", "--x\n", "/*y*/", "/*"]


@given(
    st.lists(st.sampled_from([*PIECES, "'", '"', "-", "/", "*"]), max_size=12),
    st.lists(st.sampled_from([" ", "", "\n", "\t ", " -- z\n", "/**/"])),
)
def test_collapsing_does_not_change_what_sqlite_makes_of_a_statement(pieces: list[str], blanks: list[str]) -> None:
    glue = [*blanks, *[" "] * len(pieces)]
    sql = "".join(piece + blank for piece, blank in zip(pieces, glue, strict=False))
    assert outcome(canonical_sql(sql)) == outcome(sql)
    assert canonical_sql(canonical_sql(sql)) == canonical_sql(sql)


def outcome(sql: str) -> object:
    connection = apsw.Connection(":memory:")
    connection.execute("CREATE TABLE t (a)")
    try:
        return connection.execute(sql).fetchall()
    except apsw.Error as error:
        return type(error)


def test_a_key_names_everything_that_a_result_depends_on() -> None:
    names = [
        key("SELECT 1"),
        key("SELECT 2"),
        key("SELECT 1", content="d"),
        key("SELECT 1", limits=SandboxConfig(max_rows=7)),
        key("SELECT 1", engine="sqlite 3.0"),
    ]
    assert len(set(names)) == len(names)
    assert {len(name) for name in names} == {16}


def test_a_key_changes_with_the_source_of_the_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_sandbox" / "engine"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    before = source_hash("some_sandbox")
    (package / "runner.py").write_text("LIMIT = 1")
    source_hash.cache_clear()
    assert source_hash("some_sandbox") != before
    source_hash.cache_clear()
    kept = key("SELECT 1")
    monkeypatch.setattr("spftsql.verification.cache.source_hash", lambda *packages: "other")
    _key_prefix.cache_clear()
    assert key("SELECT 1") != kept
    _key_prefix.cache_clear()


def test_a_result_comes_back_as_it_was_and_under_its_own_key_alone() -> None:
    one, other = key("SELECT 1"), key("SELECT 2")
    value = encode(one, RESULT)
    assert decode(one, value) == RESULT
    assert decode(other, value) is None
    for position in range(len(value)):
        assert decode(one, value[:position] + bytes([value[position] ^ 1]) + value[position + 1 :]) is None
    assert decode(one, value[:-1]) is None
    assert decode(one, b"") is None


@pytest.mark.parametrize(
    ("status", "reason", "sql", "kept"),
    [
        ("ran", "", "SELECT 1", True),
        ("truncated", "too many rows or bytes", "SELECT a FROM t", True),
        ("error", "no such column: x", "SELECT x", True),
        ("error", "refused: EXPLAIN", "EXPLAIN SELECT 1", True),
        ("timeout", "longer than 5 s", "SELECT 1", False),
        ("error", "killed", "SELECT 1", False),
        ("error", "memory", "SELECT 1", False),
        ("ran", "", "SELECT random()", False),
        ("ran", "", "SELECT date('now')", False),
    ],
)
def test_what_depends_on_the_moment_is_not_kept(status: str, reason: str, sql: str, kept: bool) -> None:
    assert repeatable(sql, Execution(status, reason, (), [], 1.0, "sqlite")) is kept  # type: ignore[arg-type]


def test_the_engine_is_named_as_its_results_name_it() -> None:
    assert engine_version("sqlite") == f"sqlite {apsw.sqlite_lib_version()}"
    assert engine_version("postgresql") is None


def test_memory_is_bounded_and_what_was_used_last_stays() -> None:
    names = [key(f"SELECT {i}") for i in range(4)]
    size = len(encode(names[0], RESULT))
    cache = ResultCache(max_bytes=2 * size)
    for name in names[:3]:
        cache.put_many({name: RESULT}, durable=True)
        assert cache.get_many(names[:1]) == {names[0]: RESULT}
    assert set(cache.get_many(names)) == {names[0], names[2]}
    cache.put_many({names[3]: Execution("ran", "", ("a",), [("x" * 10 * size,)], 1.0, "sqlite")}, durable=True)
    assert set(cache.get_many(names)) <= {names[0], names[2]}


def test_results_outlive_the_process_where_they_are_durable(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "results.sqlite"
    one, other = key("SELECT 1"), key("SELECT 2")
    first = ResultCache(1 << 20, ResultStore(path, 1 << 20))
    first.put_many({one: RESULT}, durable=True)
    first.put_many({other: RESULT}, durable=False)
    second = ResultCache(1 << 20, ResultStore(path, 1 << 20))
    assert second.get_many([one, other]) == {one: RESULT}
    assert path.stat().st_mode & 0o077 == 0


WRITER = """
import sys
from pathlib import Path
from tests.unit.test_result_cache import RESULT, key
from spftsql.verification.cache import ResultStore
store, name, number = ResultStore(Path(sys.argv[1]), 1 << 26), sys.argv[2], 0
while True:
    store.put_many({key(f"{name} {number + i}"): RESULT for i in range(20)})
    number += 20
    print(number, flush=True)
"""


def test_writers_that_are_killed_lose_nothing_that_was_kept(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    command = [sys.executable, "-c", WRITER, str(path)]
    kept = {}
    for round_ in range(2):
        names = [f"{round_} {writer}" for writer in range(2)]
        writers = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in names]
        for writer in writers:
            assert writer.stdout
            for _ in range(10):
                writer.stdout.readline()
        for name, writer in zip(names, writers, strict=True):
            os.kill(writer.pid, signal.SIGKILL)
            assert writer.stdout
            kept[name] = int((writer.stdout.read().split() or ["200"])[-1])
            writer.wait()
    store = ResultStore(path, 1 << 26)
    for name, count in kept.items():
        names = [key(f"{name} {number}") for number in range(count)]
        assert store.get_many(names) == dict.fromkeys(names, RESULT)
    connection = apsw.Connection(str(path))
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_damaged_value_is_no_result_and_is_replaced(tmp_path: Path) -> None:
    path, name = tmp_path / "results.sqlite", key("SELECT 1")
    store = ResultStore(path, 1 << 20)
    store.put_many({name: RESULT})
    apsw.Connection(str(path)).execute("UPDATE results SET value = CAST(value || 'x' AS BLOB)")
    assert store.get_many([name]) == {}
    store.put_many({name: RESULT})
    assert store.get_many([name]) == {name: RESULT}


@pytest.mark.parametrize("damage", ["garbage", "hole", "other format"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    path, names = tmp_path / "results.sqlite", [key(f"SELECT {i}") for i in range(2000)]
    store = ResultStore(path, 1 << 24)
    store.put_many(dict.fromkeys(names, RESULT))
    store.close()
    if damage == "garbage":
        path.write_bytes(os.urandom(100_000))
    elif damage == "hole":
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(path.stat().st_size - 4096))
    else:
        apsw.Connection(str(path)).execute("PRAGMA user_version = 99")
    store = ResultStore(path, 1 << 24)
    assert store.get_many(names[:500]) == {}
    store.put_many({names[0]: RESULT})
    assert store.get_many(names) == {names[0]: RESULT}
    assert "made anew" in caplog.text


def test_the_file_is_bounded_and_what_was_not_used_for_long_goes_first(tmp_path: Path) -> None:
    path, limit = tmp_path / "results.sqlite", 400_000
    store = ResultStore(path, limit)
    big = Execution("ran", "", ("a",), [("x" * 2_000,)], 1.0, "sqlite")
    names = [key(f"SELECT {i}") for i in range(1000)]
    for start in range(0, 1000, 50):
        store.put_many(dict.fromkeys(names[start : start + 50], big))
        assert path.stat().st_size <= limit
    found = store.get_many(names)
    assert names[-1] in found
    assert names[0] not in found
    assert len(found) > 50
    store.put_many({names[0]: Execution("ran", "", ("a",), [("x" * (5 << 20),)], 1.0, "sqlite")})
    assert names[0] not in store.get_many([names[0]])


def test_a_full_disk_switches_the_store_off_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [key(f"SELECT {i}") for i in range(300)]
    big = Execution("ran", "", ("a",), [("x" * 20_000,)], 1.0, "sqlite")
    with small_disk(tmp_path / "disk", "1m") as disk:
        store = ResultStore(disk / "results.sqlite", 1 << 30)
        cache = ResultCache(1 << 30, store)
        for name in names:
            cache.put_many({name: big}, durable=True)
        assert not store.active
        assert cache.get_many(names) == dict.fromkeys(names, big)
        assert store.get_many(names) == {}
    assert len(re.findall("not kept on disk", caplog.text)) == 1


def test_a_store_that_cannot_be_made_finds_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    store = ResultStore(tmp_path / "file" / "results.sqlite", 1 << 20)
    store.put_many({key("SELECT 1"): RESULT})
    assert store.get_many([key("SELECT 1")]) == {}
    assert "not kept on disk" in caplog.text


def test_what_is_used_is_marked_by_the_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, names = tmp_path / "results.sqlite", [key("SELECT 1"), key("SELECT 2")]
    store = ResultStore(path, 1 << 20)
    store.put_many(dict.fromkeys(names, RESULT))
    later = time.time() + 7200
    monkeypatch.setattr(time, "time", lambda: later)
    store.get_many(names[:1])
    used = dict(apsw.Connection(str(path)).execute("SELECT key, used FROM results"))
    assert used[names[0]] > used[names[1]]

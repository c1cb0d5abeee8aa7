"""The values of databases: what bounds a column, how much of a server is read, and how many connections stay open."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from spftsql.databases import reading, values
from spftsql.databases.reading import Query
from spftsql.databases.values import OpenValues, Values
from spftsql.errors import UserError
from spftsql.sandbox.location import Location, locate

MANY = 5_000  # values of a column from which on not all are kept


def written(path: Path, rows: Sequence[tuple[object, ...]]) -> Path:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (a, b)")
        connection.executemany("INSERT INTO t VALUES (?, ?)", rows)
    connection.close()
    return path


@pytest.mark.parametrize("count", [9, MANY + 9])
@pytest.mark.parametrize("blob", [b"\x00", b"zz"])
def test_a_blob_is_no_bound(tmp_path: Path, count: int, blob: bytes) -> None:
    path = written(tmp_path / "a.sqlite", [*((n, f"w{n:05}") for n in range(count)), (blob, blob), (None, None)])
    found = Values(path)
    assert found.bounds("t", "a") == (0, count - 1)
    assert found.bounds("t", "b") == ("w00000", f"w{count - 1:05}")


@pytest.mark.parametrize(
    ("cells", "same"),
    [
        ([1, -2, None], True),
        ([2**23, -(2**23)], True),
        ([None], True),
        ([1, 2.5], False),
        ([1, 2.0], False),
        ([1, "2"], False),
        ([1, b"2"], False),
        ([2**23 + 1], False),
        ([-(2**23) - 1], False),
    ],
)
def test_what_adds_up_to_the_same_in_every_order(tmp_path: Path, cells: list[object], same: bool) -> None:
    found = Values(written(tmp_path / "a.sqlite", [(cell, None) for cell in cells]))
    assert found.adds_up("t", "a") is same


@pytest.mark.parametrize("count", [9, MANY + 9])
def test_numbers_beside_texts_have_no_bounds(tmp_path: Path, count: int) -> None:
    path = written(tmp_path / "a.sqlite", [*((n, b"") for n in range(count)), ("x", b"y")])
    found = Values(path)
    assert found.bounds("t", "a") is None and found.bounds("t", "b") is None


class Servers:
    """Stands for PostgreSQL servers: a file behind each address, and what was opened and asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open: list[str] = []
        self.most = 0
        self.asked: list[str] = []
        monkeypatch.setattr(values, "reader", self.reader)

    @contextmanager
    def reader(self, location: Location) -> Iterator[Query]:
        connection = sqlite3.connect(location.address.removeprefix("postgresql://"))
        self.open.append(location.address)
        self.most = max(self.most, len(self.open))

        def query(sql: str) -> list[tuple[object, ...]]:
            self.asked.append(sql)
            return connection.execute(sql).fetchall()

        try:
            yield query
        finally:
            self.open.remove(location.address)
            connection.close()


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Servers:
    return Servers(monkeypatch)


def test_of_a_large_table_of_a_server_the_beginning_is_read(
    tmp_path: Path, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "a.sqlite", [(n, f"w{n % 2}") for n in range(100)])
    server = Location("postgresql", f"postgresql://{path}")
    whole = Values(server)
    assert len(whole.column("t", "a")) == 100 and whole.column("t", "b") == [("w0", 50), ("w1", 50)]
    assert (whole.bounds("t", "a"), whole.holds("t", "a", 500)) == ((0, 99), False)
    monkeypatch.setattr(reading, "SCANNED", 10)
    cut = Values(server)
    assert cut.column("t", "a") == [(n, 1) for n in range(10)] and cut.column("t", "b") == [("w0", 5), ("w1", 5)]
    assert (cut.holds("t", "a", 5), cut.holds("t", "a", 50)) == (True, None)  # it may stand further down
    assert cut.bounds("t", "a") is None
    row = cut.draw_row(random.Random(0), "t", ["a", "b"])
    assert row is not None and row[0] in range(10)
    file = Values(locate(path))  # whose reading costs no server anything
    assert len(file.column("t", "a")) == 100


def test_all_that_is_asked_of_a_server_is_bounded(tmp_path: Path, servers: Servers) -> None:
    path = written(tmp_path / "a.sqlite", [(n, f"w{n}") for n in range(MANY + 9)])
    found = Values(Location("postgresql", f"postgresql://{path}"))
    assert found.bounds("t", "a") == (0, MANY + 8)
    found.draw_row(random.Random(0), "t", ["a", "b"])
    assert servers.asked and all(f"{reading.SCANNED}" in sql for sql in servers.asked)


def test_few_connections_to_servers_stay_open_and_what_was_read_is_kept(tmp_path: Path, servers: Servers) -> None:
    places = {}
    for number in range(40):
        path = written(tmp_path / f"{number}.sqlite", [(number, "x")])
        places[str(number)] = Location("postgresql", f"postgresql://{path}")
    found = OpenValues(places)
    for _ in range(2):
        for name in places:
            assert found[name].column("t", "a") == [(int(name), 1)]
    assert servers.most <= 9 and len(servers.asked) == 40  # each was read once
    assert found["0"].column("t", "b") == [("x", 1)]  # its connection had been closed
    assert len(servers.open) <= 8
    found.close()
    assert servers.open == []


def test_a_database_that_was_removed_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "gone.sqlite", [(1, "x")])
    places = OpenValues({"gone": path})
    path.unlink()
    with pytest.raises(UserError, match=r"^database .*gone\.sqlite cannot be opened: unable to open database file$"):
        places["gone"]

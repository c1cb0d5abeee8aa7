"""A cluster that goes away under a run: the process ends with a line, and only then."""

from __future__ import annotations

import itertools
import socket
from contextlib import closing
from pathlib import Path

import pytest

from spftsql.cluster.session import _unix_connection, _watch


def listening() -> socket.socket:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return socket.create_connection(server.getsockname())


def refused() -> socket.socket:
    raise ConnectionRefusedError


def slow() -> socket.socket:
    raise TimeoutError


def looks(count: int) -> itertools.chain[bool]:
    return itertools.chain(itertools.repeat(True, count), [False])


def test_a_head_that_is_gone_ends_the_process_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    ended: list[int] = []
    work, answers = looks(50), itertools.chain([listening], itertools.repeat(refused))
    _watch({"head": lambda: next(answers)()}, "10.0.0.1:6379", lambda: next(work), ended.append, look_s=0)
    assert ended == [4]
    assert len(list(work)) > 35  # a head is waited for, because it may come back
    assert capsys.readouterr().err == (
        "spftsql: the Ray head at 10.0.0.1:6379 is gone; what is finished is kept: run again when it is back\n"
    )


def test_a_head_that_comes_back_or_is_slow_ends_nothing() -> None:
    ended: list[int] = []
    work, answers = looks(60), itertools.cycle([refused] * 6 + [slow] * 6 + [listening])
    _watch({"head": lambda: next(answers)()}, "here", lambda: next(work), ended.append, look_s=0)
    assert ended == []


def test_a_node_is_looked_for_at_its_socket(tmp_path: Path) -> None:
    place, ended = tmp_path / "raylet", list[int]()
    work = looks(10)
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(str(place))
        server.listen(20)

        def goes_after_three_looks() -> bool:
            if len(seen) == 3:
                server.close()
            seen.append(next(work))
            return seen[-1]

        seen: list[bool] = []
        reach = {"node": lambda: _unix_connection(f"unix://{place}")}
        _watch(reach, "here", goes_after_three_looks, ended.append, look_s=0)
    assert ended == [4] and len(seen) == 5


def test_what_was_never_there_to_look_at_ends_nothing(tmp_path: Path) -> None:
    ended: list[int] = []
    work = looks(10)
    _watch({"node": lambda: _unix_connection(str(tmp_path / "none"))}, "", lambda: next(work), ended.append, look_s=0)
    assert ended == []

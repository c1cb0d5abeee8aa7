"""Jobs without a cluster: what fits where, what is said while something waits, output over connections that break."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spftsql.cluster.local import LocalCluster, node_lines
from spftsql.errors import Fault, UserError
from spftsql.planning.capacity import needs, refuse_impossible, told_when_waiting
from spftsql.recipes import resolve
from spftsql.submitting import following as job_following
from spftsql.submitting.command import amounts, stage_arguments
from spftsql.submitting.following import Follower, demand_line
from spftsql.submitting.server import beyond, has_fixed_size, offered, waiting
from spftsql.submitting.submission import _placed, chosen_stage

NODES = [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 4.0, "verification": 10.0}]


@pytest.mark.parametrize(
    ("each", "count", "expected"),
    [
        ({"CPU": 4}, 3, ""),
        ({"CPU": 4}, 4, "4 times 4 CPU, and the nodes have room for 3"),
        ({"CPU": 9}, 1, "9 CPU, and the largest node has 8"),
        ({"CPU": 1, "GPU": 1}, 1, ""),
        ({"CPU": 1, "GPU": 1}, 2, "2 times 1 CPU + 1 GPU, and the nodes have room for 1"),
        ({"TPU": 1}, 1, "1 TPU, and no node has any"),
        ({"CPU": 5, "verification": 1}, 1, "1 times 5 CPU + 1 verification, and the nodes have room for 0"),
        ({"CPU": 0.1}, 120, ""),
        ({"CPU": 0, "GPU": 0}, 1000, ""),
    ],
)
def test_what_bundles_lack_on_nodes(each: dict[str, float], count: int, expected: str) -> None:
    assert beyond(each, count, NODES) == expected


def test_a_recipe_is_refused_only_where_the_cluster_cannot_grow() -> None:
    config = resolve("demo", ["training.workers=2", "training.cpus=1", "training.gpus=1"])
    lines = refuse_impossible(needs(config), NODES, fixed=False)
    assert lines == ["training.workers needs 2 times 1 CPU + 1 GPU, and the nodes have room for 1"]
    with pytest.raises(UserError, match=r"can never run it: training\.workers needs 2 times"):
        refuse_impossible(needs(config), NODES, fixed=True)
    assert refuse_impossible(needs(config, ["verification"]), NODES, fixed=True) == []


def test_a_stage_that_waits_for_a_node_says_so_once_and_when_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    config = resolve("demo", ["generation.resources={generation: 1}"])
    with_it, without = [{"CPU": 4.0, "generation": 1.0}], [{"CPU": 4.0}]
    looks = iter([with_it, without, without, ConnectionError(), without, with_it])
    done = threading.Event()

    def offers() -> list[dict[str, float]]:
        look = next(looks, None)
        if look is None:
            done.set()
            return with_it
        if isinstance(look, Exception):
            raise look
        return look

    with told_when_waiting(config, "generation", offers, look_s=0.005):
        assert done.wait(20)
    assert capsys.readouterr().err.splitlines() == [
        "spftsql: generation waits: generation.actors needs 1 generation, and no node has any; "
        "it goes on when such a node comes",
        "spftsql: generation goes on: a node for it is there again",
    ]


def test_a_cluster_is_of_fixed_size_when_every_node_is_a_type_of_its_own() -> None:
    assert has_fixed_size({"autoscalerReport": {"nodeTypeMapping": {"ab": "node_ab"}}})
    assert has_fixed_size({"autoscaler_report": {"node_type_mapping": {"ab": "node_ab"}}})
    assert not has_fixed_size({"autoscalerReport": {"nodeTypeMapping": {"ab": "verification"}}})
    assert not has_fixed_size({})


def test_what_waits_for_room_is_said() -> None:
    status = {
        "loadMetricsReport": {
            "nodeTypes": [[{"CPU": 2.0, "node:1": 1.0}, 2]],
            "resourceDemand": [[{"CPU": 1.0}, 3]],
            "pgDemand": [[{"strategy": "PACK", "bundles": [[{"GPU": 1.0, "bundle_group_1": 0.001}, 2]]}, 2]],
        }
    }
    line = demand_line(waiting(status), offered(status), fixed=True)
    assert line == "Waiting for room in the cluster: 3 x 1 CPU; 4 x 1 GPU (needs 1 GPU, and no node has any)"
    assert "or a new node" in demand_line(waiting(status), offered(status), fixed=False)
    assert demand_line(waiting({}), offered({}), fixed=True) == ""


class Flaky:
    """A job server whose stream begins at the start each time and breaks after so many characters."""

    def __init__(self, output: str, breaks: list[int], chunk: int) -> None:
        self.output, self.breaks, self.chunk = output, breaks, chunk
        self.statuses = ["PENDING", "PENDING", "RUNNING"]

    def get_job_info(self, job: str) -> Any:
        status = self.statuses.pop(0) if self.statuses else "RUNNING"
        if status == "RUNNING" and not self.breaks and not self.statuses:
            status = "SUCCEEDED" if getattr(self, "whole", False) else "RUNNING"
        return SimpleNamespace(
            status=SimpleNamespace(value=status, is_terminal=lambda: status == "SUCCEEDED"),
            message="Job has not started yet.",
            driver_exit_code=0,
            metadata={job_following.DRIVER_KEY: '{"quantum": 1}'},
        )

    def get_job_logs(self, job: str) -> str:
        return self.output

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        end = self.breaks.pop(0) if self.breaks else None
        for start in range(0, len(self.output) - 3 if end is None else min(end, len(self.output)), self.chunk):
            yield self.output[start : start + self.chunk]
            await asyncio.sleep(0)
        if end is not None and end % 3 == 0:
            await asyncio.sleep(60)  # a connection that died without a word
        if end is not None:
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
        self.whole = True  # the last characters come after the end of the stream

    def _do_request(self, method: str, path: str, **_: Any) -> Any:
        node = {"state": "ALIVE", "resources_total": {"CPU": 2.0}}
        return SimpleNamespace(status_code=200, json=lambda: {"data": {"result": {"result": [node]}}})


@settings(max_examples=40)
@given(
    st.text(min_size=5, max_size=200),
    st.lists(st.integers(0, 250), max_size=5),
    st.integers(1, 40),
)
def test_each_character_is_shown_once_wherever_connections_break(output: str, breaks: list[int], chunk: int) -> None:
    import contextlib
    import io

    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(shown):
        patch.setattr(job_following, "_SILENCE_S", 0.01)
        patch.setattr(job_following.time, "sleep", lambda seconds: None)
        patch.setattr(job_following._console, "print", lambda *line, **_: None)
        assert Follower(Flaky(output, breaks, chunk), "job").follow() == 0  # type: ignore[arg-type]
    assert shown.getvalue() == output


def test_a_waiting_job_says_why_once_and_a_silent_cluster_is_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job_following.time, "sleep", lambda seconds: None)
    assert Follower(Flaky("hello\n", [4], 2), "job").follow() == 0  # type: ignore[arg-type]
    told = capsys.readouterr().err
    assert told.count("its driver needs 1 quantum, and no node has any") == 1
    assert told.count("connection is lost") == told.count("connection is back") == 1

    clock = iter(range(0, 100_000, 600))
    monkeypatch.setattr(job_following.time, "monotonic", lambda: float(next(clock)))
    silent = SimpleNamespace(get_job_info=lambda job: (_ for _ in ()).throw(ConnectionError("refused")))
    with pytest.raises(Fault, match="silent for"):
        Follower(silent, "job").follow()  # type: ignore[arg-type]

    def unknown(job: str) -> None:
        raise RuntimeError("Request failed with status code 404: Job job does not exist.")

    with pytest.raises(Fault, match="submit it again"):
        Follower(SimpleNamespace(get_job_info=unknown), "job").follow()  # type: ignore[arg-type]


def test_options_of_a_stage() -> None:
    arguments = stage_arguments({"input": "a", "output": "b", "mode": None})
    assert arguments == ["--input", "a", "--output", "b"]
    assert chosen_stage("verify", arguments) == "verify"
    assert chosen_stage(None, []) is None
    for stage, options in (("verify", []), (None, arguments), ("verfy", arguments), ("generate", ["--mode", "sft"])):
        with pytest.raises(UserError, match="stage"):
            chosen_stage(stage, options)
    assert amounts("--driver", ["CPU=1", "quantum=0.5"]) == {"CPU": 1.0, "quantum": 0.5}
    with pytest.raises(UserError, match="NAME=AMOUNT"):
        amounts("--driver", ["CPU"])


def test_paths_of_a_recipe_are_those_of_this_machine_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    databases = (
        "data.databases=[{name: a, url: a.sqlite, replicas: [sqlite:///more/a.sqlite, sqlite:////abs/a.sqlite]}, "
        "{name: b, url: 'postgresql://reader@db/b'}]"
    )
    config = resolve("demo", ["data.benchmark=jsonl", "data.root=labels", databases])
    tree = _placed(config, local=True)
    first, second = tree["data"]["databases"]
    assert tree["data"]["root"] == str(tmp_path / "labels") and tree["run_dir"] == str(tmp_path / "runs")
    assert first["url"] == str(tmp_path / "a.sqlite")
    assert first["replicas"] == [f"sqlite:///{tmp_path}/more/a.sqlite", "sqlite:////abs/a.sqlite"]
    assert second["url"] == "postgresql://reader@db/b"
    elsewhere = config.model_copy(update={"run_dir": Path("/shared/runs")})
    elsewhere = elsewhere.model_copy(update={"data": config.data.model_copy(update={"root": Path("/shared/labels")})})
    with pytest.raises(UserError, match=r"a database's url is the relative path a\.sqlite"):
        _placed(elsewhere, local=False)


def test_nodes_that_offer_the_same_are_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    told = [{"verification": 8.0, "memory": 5.0, "CPU": 4.0}, {"CPU": 4.0, "verification": 8.0}]
    monkeypatch.setattr("spftsql.cluster.local.nodes_of", lambda cluster: told)
    lines = node_lines(LocalCluster("127.0.0.1:1", "http://127.0.0.1:2", "/tmp/none", ()))
    assert lines == ["node 1: 4 CPU + 8 verification", "node 2: 4 CPU + 8 verification"]

"""Scaling the verifier pool from outside: what the dashboard says, what is decided, what a person is told."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spftsql.cli import main
from spftsql.cluster import scaling
from spftsql.cluster.scaling import (
    Load,
    PoolScaler,
    PoolState,
    decide,
    follow_load,
    missing_resources,
    read_load,
    read_state,
    scale_verifiers,
    watch_verifiers,
)
from spftsql.errors import Fault, UserError
from spftsql.verification import pool

FIXTURES = Path(__file__).parents[1] / "fixtures" / "scaling"
DEPLOYMENT = json.loads((FIXTURES / "deployment.json").read_text())
METRICS = (FIXTURES / "metrics.txt").read_text()
ADDRESS = "http://127.0.0.1:8265"


def loads(*calls: float, running: int = 4) -> list[Load]:
    return [Load(running, each) for each in calls]


@pytest.mark.parametrize(
    ("looks", "wanted", "count"),
    [
        (loads(32), 4, 8),  # all have as much as they take
        (loads(16), 4, 8),
        (loads(15), 4, 6),
        (loads(11), 4, 4),
        (loads(0), 4, 4),  # one look is not enough to take workers away
        (loads(0, 0, 0), 4, 4),
        (loads(0, 0, 0, 0), 4, 2),  # the fewest
        (loads(7, 0, 0, 0), 4, 3),
        (loads(0, 0, 32, 0), 4, 4),
        (loads(32, 0, 0, 0, 0), 4, 2),  # only the last four count
        (loads(32), 8, 8),  # some are still to come
        (loads(400, running=60), 60, 64),  # the most
        ([], 4, 4),
        ([], 1, 2),
        ([], 99, 64),
    ],
)
def test_policy(looks: list[Load], wanted: int, count: int) -> None:
    assert decide(looks, wanted, 2, 64) == count


@given(st.integers(0, 500), st.integers(1, 64), st.integers(1, 64), st.integers(1, 64))
def test_policy_settles_under_a_steady_demand(demand: int, start: int, one: int, other: int) -> None:
    """A run that has `demand` calls at most on their way; a worker takes 8."""
    minimum, maximum = sorted((one, other))
    wanted, looks, history = start, [], []
    for _ in range(60):
        looks = [*looks, Load(wanted, min(demand, 8 * wanted))][-4:]
        count = decide(looks, wanted, minimum, maximum)
        if count != wanted:
            wanted, looks = count, []
        history.append(wanted)
    assert minimum <= wanted <= maximum
    assert len(set(history[-20:])) == 1
    assert wanted == min(max(demand // 3 + 1, minimum), maximum)


@given(st.integers(1, 64), st.integers(1, 64))
def test_policy_gives_a_stage_with_much_to_do_all_that_it_may_have(start: int, maximum: int) -> None:
    wanted = start
    for _ in range(10):
        wanted = decide([Load(wanted, pool._PER_WORKER * wanted)], wanted, 1, maximum)
    assert wanted == maximum


def test_the_dashboards_answer_is_read() -> None:
    state = read_state(DEPLOYMENT)
    assert (state.wanted, state.running, state.starting, state.stopping) == (6, 2, 2, 1)
    assert state.needs == {"CPU": 0.5}
    assert state.ids == {"fa61", "7cdb"}
    assert not state.settled


def test_the_load_is_that_of_the_workers_that_run() -> None:
    assert read_load(METRICS, frozenset({"fa61", "7cdb"})) == Load(2, 11.0)
    assert read_load(METRICS, frozenset({"other"})) is None


@pytest.mark.parametrize(
    ("usage", "words"),
    [
        ({"CPU": [2.0, 2.0]}, "1 more CPU (2 of 2 are in use)"),
        ({"CPU": [15.5, 16.0]}, "0.5 more CPU (15.5 of 16 are in use)"),
        ({"CPU": [1.0, 16.0]}, ""),
        ({}, "1 CPU, of which the cluster has none"),
    ],
)
def test_what_is_missing_is_named(usage: dict[str, list[float]], words: str) -> None:
    assert missing_resources(read_state(DEPLOYMENT), usage) == words


class Answer:
    def __init__(self, body: Any, status: int = 200) -> None:
        self._body, self.status_code, self.text = body, status, json.dumps(body)

    def json(self) -> Any:
        return self._body


class Dashboard:
    """Answers as Ray's dashboard does, for a pool that starts and stops one worker per look while there is room."""

    def __init__(self, running: int, room: int) -> None:
        self.wanted = self.running = running
        self.room, self.asked = room, [running]
        self.pool = True

    def _do_request(self, method: str, path: str, json_data: Any = None, timeout: float = 0) -> Answer:
        if method == "POST":
            assert path == "/api/v1/applications/verifier/deployments/verifier/scale"
            if not self.pool:
                return Answer({"error": "Application or Deployment not found"}, 404)
            self.wanted = json_data["target_num_replicas"]
            self.asked.append(self.wanted)
            return Answer({"message": "Scaling request received."})
        if path == "/api/cluster_status":
            usage = {"CPU": [0.5 * self.running, 0.5 * self.room]}
            return Answer({"data": {"clusterStatus": {"loadMetricsReport": {"usage": usage}}}})
        assert path == "/api/serve/applications/"
        if not self.pool:
            return Answer({"applications": {}})
        return Answer({"applications": {"verifier": {"deployments": {"verifier": self._deployment()}}}})

    def _deployment(self) -> Any:
        if self.running < min(self.wanted, self.room):
            self.running += 1
        elif self.running > self.wanted:
            self.running -= 1
        starting = max(self.wanted - self.running, 0)
        stopping = max(self.running - self.wanted, 0)
        states = ["RUNNING"] * (self.running - stopping) + ["STARTING"] * starting + ["STOPPING"] * stopping
        replicas = [{"state": state, "worker_id": f"w{i}"} for i, state in enumerate(states)]
        return {**DEPLOYMENT, "target_num_replicas": self.wanted, "replicas": replicas}


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    answering = Dashboard(running=2, room=5)
    monkeypatch.setattr(scaling, "connect", lambda address: answering)
    monkeypatch.setattr(scaling, "_POLL_S", 0.001)
    yield answering


def test_up_and_down_until_it_is_so(dashboard: Dashboard, capsys: pytest.CaptureFixture[str]) -> None:
    scale_verifiers(5, ADDRESS)
    assert dashboard.running == 5
    assert "3 of 5 verifiers run, 2 start" in capsys.readouterr().err
    scale_verifiers(1, ADDRESS)
    assert dashboard.running == 1
    assert "finish their work" in capsys.readouterr().err
    assert dashboard.asked == [2, 5, 1]


def test_not_waiting(dashboard: Dashboard, capsys: pytest.CaptureFixture[str]) -> None:
    scale_verifiers(4, ADDRESS, wait=False)
    assert dashboard.wanted == 4
    assert dashboard.running < 4
    assert "2 verifiers run, 4 are asked for" in capsys.readouterr().err


def test_no_room_is_said_with_what_is_missing(dashboard: Dashboard) -> None:
    with pytest.raises(UserError, match=r"5 of 8 verifiers run, 3 wait for 1.5 more CPU .*scale verifiers 5 --address"):
        scale_verifiers(8, ADDRESS, timeout_s=0.2)


def test_workers_that_do_not_come_up_for_another_reason_are_a_fault(dashboard: Dashboard) -> None:
    dashboard.room = 2
    scale = "/api/v1/applications/verifier/deployments/verifier/scale"
    dashboard._do_request("POST", scale, {"target_num_replicas": 2})
    state = read_state({**dashboard._deployment(), "message": "constructor failed"})
    assert str(scaling.too_late(state, 3, "", ADDRESS, 9)) == "2 of 3 verifiers run after 9 s: constructor failed"
    assert isinstance(scaling.too_late(state, 3, "", ADDRESS, 9), Fault)


def test_no_pool_and_bad_numbers_are_one_clear_line(dashboard: Dashboard) -> None:
    with pytest.raises(UserError, match="at least 1"):
        scale_verifiers(0, ADDRESS)
    with pytest.raises(UserError, match="--min 3 and --max 2"):
        watch_verifiers(3, 2, ADDRESS)
    with pytest.raises(UserError, match="http://HOST:8265"):
        scale_verifiers(2, "ray://head:10001")
    dashboard.pool = False
    with pytest.raises(UserError, match=r"no verifier pool runs at http://127\.0\.0\.1:8265"):
        scale_verifiers(2, ADDRESS)
    with pytest.raises(UserError, match="no verifier pool runs"):
        PoolScaler(ADDRESS).ask_for(2)


class Over(Exception):
    """Ends the loop."""


def test_the_policy_asks_the_same_endpoint(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    dashboard.room, calls, looks = 100, iter([16, 32, 64, *[10] * 8]), []

    def load(scaler: PoolScaler) -> Load:
        looks.append(Load(dashboard.running, next(calls)))
        dashboard.running = dashboard.wanted
        return Load(dashboard.running, looks[-1].calls)

    def pause(seconds: float) -> None:
        if len(looks) == 9:
            raise Over

    monkeypatch.setattr(PoolScaler, "load", load)
    said: list[str] = []
    with pytest.raises(Over):
        follow_load(PoolScaler(ADDRESS), 2, 20, said.append, pause)
    assert dashboard.asked == [2, 4, 8, 16, 4]
    assert said[0] == "16 calls at 2 verifiers: 2 -> 4"


def test_the_policy_bears_a_pool_that_is_away_for_a_while(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        dashboard.pool = len(pauses) == 3  # away twice, there once, then away for good
        if len(pauses) > 20:
            raise Over

    dashboard.pool = False
    monkeypatch.setattr(PoolScaler, "load", lambda scaler: scaler.state() and Load(2, 6))
    with pytest.raises(UserError, match="no verifier pool runs"):
        follow_load(PoolScaler(ADDRESS), 1, 20, print, pause)
    assert len(pauses) == 3 + 1 + scaling._SILENCES - 1


def test_a_settled_pool() -> None:
    assert PoolState(2, 2, 0, 0, {}, "", frozenset()).settled
    assert not PoolState(2, 2, 0, 1, {}, "", frozenset()).settled


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "say how many"),
        (["3", "--watch", "--max", "4"], "--watch takes --max and no number"),
        (["--watch"], "--watch takes --max and no number"),
        (["9", "--timeout", "0.1"], "wait for 2 more CPU"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(
    dashboard: Dashboard,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    line: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["spftsql", "scale", "verifiers", *arguments, "--address", ADDRESS])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert line in capsys.readouterr().err.splitlines()[-1]

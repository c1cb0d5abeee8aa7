"""More or fewer verifier workers while a run goes on, from outside, through Ray's dashboard.

Serve's external-scaler endpoint changes the number and keeps the workers that are there; one that is taken away first
answers the calls that it has. Nothing here joins the cluster.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from spftsql.errors import Fault, UserError
from spftsql.submitting.server import connect, dashboard_url

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_POLL_S = 0.5
_REQUEST_S = 30.0
_LOOK_S = 15.0  # between two looks of the policy; the figures of a worker are renewed every 10 s
_LOOKS = 4  # with too little work, one after another, before workers are taken away
_CALLS = 3  # at a worker at the same time: one executes and the others are there when it is done
_FULL = 4  # at a worker: as many as a stage sends, however much it has to do (`verification.pool`)
_SILENCES = 5  # looks without an answer before the policy gives up
_GAUGE = re.compile(r"^ray_serve_replica_processing_queries\{(?P<labels>[^}]*)\} (?P<value>\S+)", re.MULTILINE)
_NO_POOL = "no verifier pool runs at {}: one starts with the first verification of a run there, or with an endpoint"


@dataclass(frozen=True)
class PoolState:
    """The pool as the dashboard shows it: how many workers are wanted, and how many are in which state."""

    wanted: int
    running: int
    starting: int
    stopping: int
    needs: Mapping[str, float]  # resources of one worker
    message: str
    ids: frozenset[str]  # of the workers that run

    @property
    def settled(self) -> bool:
        """Whether as many run as are wanted, and no others are there."""
        return self.running == self.wanted and not self.starting and not self.stopping


@dataclass(frozen=True)
class Load:
    """One look at the pool: workers that run, and calls that they have all together."""

    running: int
    calls: float


class PoolScaler:
    """The verifier pool of the cluster whose dashboard is at `address` (`http://HOST:8265`)."""

    def __init__(self, address: str) -> None:
        """Raises `UserError` when nothing answers there, or it wants a token."""
        self.address = dashboard_url(address)
        self._client: JobSubmissionClient = connect(self.address)

    def state(self) -> PoolState:
        """Raises `UserError` when no pool runs."""
        from spftsql.verification.pool import APP, DEPLOYMENT

        application = self._get("/api/serve/applications/")["applications"].get(APP)
        if application is None or DEPLOYMENT not in application["deployments"]:
            raise UserError(_NO_POOL.format(self.address))
        return read_state(application["deployments"][DEPLOYMENT])

    def ask_for(self, count: int) -> None:
        """Sets the number of workers that the pool shall have; returns at once. Raises `UserError` without a pool."""
        from spftsql.verification.pool import APP, DEPLOYMENT

        path = f"/api/v1/applications/{APP}/deployments/{DEPLOYMENT}/scale"
        response = self._request("POST", path, json_data={"target_num_replicas": count})
        if response.status_code == 404 or "controller is not available" in response.text:
            raise UserError(_NO_POOL.format(self.address))
        if response.status_code != 200:
            raise Fault(f"the cluster refused {count} verifiers: {' '.join(response.text.split())[:300]}")

    def missing(self, state: PoolState) -> str:
        """Which resource those that start are waiting for, in words; empty when the cluster has room for them."""
        status = self._get("/api/cluster_status")["data"].get("clusterStatus") or {}
        return missing_resources(state, (status.get("loadMetricsReport") or {}).get("usage") or {})

    def load(self) -> Load | None:
        """How busy the workers are, from the metrics of their nodes; None while there are none of them.

        Raises `Fault` when the nodes cannot be reached from here.
        """
        import httpx

        ids = self.state().ids
        targets = [target for group in self._get("/api/prometheus/sd") for target in group["targets"]]
        texts = []
        for target in targets:
            try:
                texts.append(httpx.get(f"http://{target}/metrics", timeout=_REQUEST_S).text)
            except httpx.HTTPError:
                continue
        if not texts:
            places = ", ".join(targets) or "the cluster names none"
            raise Fault(f"the metrics of the nodes ({places}) cannot be reached from here: run this on one of them")
        return read_load("\n".join(texts), ids)

    def _get(self, path: str) -> Any:
        response = self._request("GET", path)
        if response.status_code != 200:
            raise Fault(f"{self.address}{path} answered {response.status_code}: {response.text.strip()[:200]}")
        return response.json()

    def _request(self, method: str, path: str, json_data: Any = None) -> Any:
        from ray.exceptions import AuthenticationError
        from requests.exceptions import RequestException

        try:
            # Ray's client has no public call for this endpoint, and knows the address, the token and the certificates.
            return self._client._do_request(method, path, json_data=json_data, timeout=_REQUEST_S)
        except AuthenticationError:
            raise UserError(f"the cluster at {self.address} refuses its token: set RAY_AUTH_TOKEN") from None
        except RequestException as error:
            raise Fault(f"the dashboard at {self.address} broke off: {type(error).__name__}") from None


def scale_verifiers(count: int, address: str, wait: bool = True, timeout_s: float = 120.0) -> None:
    """Sets the number of verifier workers and, with `wait`, returns when they run and the others are gone.

    Progress goes to standard error. Raises `UserError` when the cluster cannot be reached, no pool runs there, or the
    cluster has no room for so many; `Fault` when they do not come up for another reason within `timeout_s`.
    """
    if count < 1:
        raise UserError("a pool has at least 1 verifier")
    scaler, console = PoolScaler(address), Console(stderr=True, highlight=False)
    before = scaler.state()
    scaler.ask_for(count)
    if not wait:
        console.print(f"{before.running} verifiers run, {count} are asked for.")
        return
    deadline, shown = time.monotonic() + timeout_s, ""
    with console.status("") as spinner:
        while True:
            state = scaler.state()
            if state.wanted == count and state.settled:
                break
            lacking = scaler.missing(state) if state.starting else ""
            line = progress_line(state, count, lacking)
            spinner.update(line)
            if line != shown and not console.is_terminal:
                console.print(line, markup=False, soft_wrap=True)
            shown = line
            if time.monotonic() > deadline:
                raise too_late(state, count, lacking, scaler.address, timeout_s)
            time.sleep(_POLL_S)
    console.print(f"{count} verifiers run.")


def watch_verifiers(minimum: int, maximum: int, address: str) -> None:
    """Keeps the number of verifier workers between two bounds as their work demands (`decide`), until Ctrl-C.

    Raises `UserError` when the cluster cannot be reached, no pool runs there, or the bounds are wrong; `Fault` when
    the cluster is silent for a while.
    """
    if not 1 <= minimum <= maximum:
        raise UserError(f"--min {minimum} and --max {maximum}: 1 or more, and the first not above the second")
    scaler, console = PoolScaler(address), Console(stderr=True, highlight=False)
    scaler.state()
    scaler.load()
    console.print(f"Keeping {minimum} to {maximum} verifiers at {scaler.address}; Ctrl-C ends it.", markup=False)
    try:
        follow_load(scaler, minimum, maximum, lambda line: console.print(line, markup=False))
    except KeyboardInterrupt:
        console.print("The verifiers stay as they are.")


def follow_load(
    scaler: PoolScaler,
    minimum: int,
    maximum: int,
    say: Callable[[str], None],
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """The loop of `watch_verifiers`, which `pause` may end by raising."""
    loads: list[Load] = []
    silences = 0
    while True:
        try:
            load, state = scaler.load(), scaler.state()
            silences = 0
        except (Fault, UserError):  # for instance no pool, between two runs
            silences += 1
            if silences == _SILENCES:
                raise
            load = None
        if load is not None:
            loads = [*loads, load][-_LOOKS:]
            count = decide(loads, state.wanted, minimum, maximum)
            if count != state.wanted:
                say(f"{load.calls:g} calls at {load.running} verifiers: {state.wanted} -> {count}")
                scaler.ask_for(count)
                loads = []
        pause(_LOOK_S)


def decide(loads: Sequence[Load], wanted: int, minimum: int, maximum: int) -> int:
    """How many workers there should be, after the given looks (the latest last) with `wanted` workers asked for.

    So many that each has less than four calls: more at once, unless some are still to come, and twice as many where
    all have four, because then nobody knows how many calls wait elsewhere. Fewer only when all of the last four looks
    say so, and then as many as the busiest of them asks for.
    """
    latest = [int(load.calls // _CALLS) + 1 for load in loads[-_LOOKS:]]
    count = wanted
    if latest and loads[-1].running >= wanted and loads[-1].calls >= _FULL * wanted:
        count = 2 * wanted
    elif latest and loads[-1].running >= wanted and latest[-1] > wanted:
        count = latest[-1]
    elif len(latest) == _LOOKS and max(latest) < wanted:
        count = max(latest)
    return min(max(count, minimum), maximum)


def read_state(deployment: Mapping[str, Any]) -> PoolState:
    """The pool from the dashboard's details of its deployment."""
    states = [replica["state"] for replica in deployment["replicas"]]
    running = states.count("RUNNING")
    stopping = states.count("STOPPING")
    return PoolState(
        wanted=deployment["target_num_replicas"],
        running=running,
        starting=len(states) - running - stopping,
        stopping=stopping,
        needs={name: amount for name, amount in deployment["required_resources"].items() if amount},
        message=" ".join(deployment["message"].split()),
        ids=frozenset(r["worker_id"] for r in deployment["replicas"] if r["state"] == "RUNNING" and r["worker_id"]),
    )


def read_load(metrics: str, ids: frozenset[str]) -> Load | None:
    """The load of the workers `ids` from the text of Prometheus metrics; None when none of them is in it."""
    from spftsql.verification.pool import APP

    calls = {}
    for match in _GAUGE.finditer(metrics):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', match["labels"]))
        if labels.get("application") == APP and labels.get("WorkerId") in ids:
            calls[labels["WorkerId"]] = float(match["value"])
    return Load(len(calls), sum(calls.values())) if calls else None


def missing_resources(state: PoolState, usage: Mapping[str, Sequence[float]]) -> str:
    """What the workers that start lack of a cluster's resources (name to used and total), in words."""
    parts = []
    for name, amount in state.needs.items():
        if name not in usage:
            parts.append(f"{amount * state.starting:g} {name}, of which the cluster has none")
            continue
        used, total = usage[name]
        lacking = amount * state.starting - (total - used)
        if lacking > 1e-6:
            parts.append(f"{lacking:g} more {name} ({used:g} of {total:g} are in use)")
    return " and ".join(parts)


def progress_line(state: PoolState, count: int, lacking: str) -> str:
    """Where the pool stands on its way to `count` workers."""
    parts = [f"{state.running} of {count} verifiers run"]
    if state.starting:
        parts.append(f"{state.starting} wait for {lacking}" if lacking else f"{state.starting} start")
    if state.stopping:
        parts.append(f"{state.stopping} finish their work")
    return ", ".join(parts)


def too_late(state: PoolState, count: int, lacking: str, address: str, timeout_s: float) -> UserError | Fault:
    """What is said when the workers do not run in time."""
    line = progress_line(state, count, lacking)
    if lacking:
        return UserError(
            f"{line}: they start when there is room; "
            f"`spftsql scale verifiers {max(state.running, 1)} --address {address}` takes them back"
        )
    return Fault(f"{line} after {timeout_s:g} s{': ' + state.message if state.message else ''}")

"""The verifier pool: a Ray Serve deployment without an HTTP route, one `PoolWorker` per replica.

A worker has no databases of its own: every call says where its database is and which limits hold. So one pool serves
any number of runs and the endpoint at once, and is replaced only when its code or its settings change.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

from spftsql import telemetry
from spftsql.causes import cause_of
from spftsql.config import Config, SandboxConfig, VerificationConfig
from spftsql.databases.places import Databases, Source, sources_of
from spftsql.errors import Fault, UserError
from spftsql.records import Verdict, VerificationRequest, content_hash
from spftsql.sandbox.execute import Sandbox
from spftsql.sandbox.result import Execution, Granted
from spftsql.serving.voting import Contest
from spftsql.verification.cache import open_results, source_hash
from spftsql.verification.node_cache import open_node_cache
from spftsql.verification.replicas import ExecutorFactory
from spftsql.verification.worker import CHUNK, Verifier

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

APP = DEPLOYMENT = "verifier"
# Calls that a worker takes at a time; one executes. A caller sends fewer, because Serve's router pauses when it finds
# no free worker: with 256 calls on their way to two workers it got a sixth of their throughput.
ONGOING = 8
_PER_WORKER = 4
_START_S = 60.0
_FIRST_S, _OTHERS_S = 900.0, 60.0  # for the first worker, which may need a new node; from then on, for the others
_TELL_S, _POLL_S = 20.0, 0.1
# A worker that has been at a call for so long answers with what it has; the caller asks again for the rest. So batches
# may be large, which keeps Serve's 4 ms for each call small, and yet little is lost or late when a worker goes.
_ANSWER_S = 2.0
_LIMITS_KEPT = 2  # sets of limits for which a worker keeps child processes; the endpoint's and a run's, say
_DRAIN_S = 300.0  # for a worker that is taken away to answer the calls that it has; then others are asked again
_LOOK_S = 2.0  # a call that takes longer looks whether the pool is still there, and how large it is by now
_STUCK_S = 900.0  # a call that takes longer, where limits are usual, waits for what does not come, as a dead mount
_CODE = ("spftsql.verification", "spftsql.sandbox", "spftsql.verdicts")

# Rows travel as plain tuples in the order of their fields: pickling dataclasses costs ten times as much.
Row = tuple[Any, ...]
_request_row = attrgetter(*(field.name for field in fields(VerificationRequest)))
_verdict_row = attrgetter(*(field.name for field in fields(Verdict)))


class PoolWorker:
    """What a replica does. The databases' files must be readable where it runs."""

    def __init__(
        self, settings: Mapping[str, Any], index: int | None = None, sandbox: ExecutorFactory = Sandbox
    ) -> None:
        """Takes a `VerificationConfig`'s fields, and what makes the executor of statements.

        Workers of different `index` (default: the rank that Serve gives) prefer different replicas of a database.
        """
        config = VerificationConfig(**settings)
        self._index = _rank() if index is None else index
        self._sandbox, self._version = sandbox, pool_version(settings, sandbox)
        self._results, self._node_cache = open_results(config), open_node_cache(config)
        self._verifiers: OrderedDict[str, Verifier] = OrderedDict()
        self._ongoing: dict[object, tuple[float, float]] = {}  # of every call its start, and what is too long for it
        self._busy_s = 0.0

    async def verify(
        self, limits: str, sources: Mapping[str, Row], rows: Sequence[Row]
    ) -> tuple[list[Row | None], float]:
        """`VerificationRequest` rows in; `Verdict` rows out, in the same order, and the seconds that they took here.

        None stands for those that it did not come to.

        `limits` is a `SandboxConfig` as JSON, `sources` are the fields of a `Source` for every database of the rows.
        """
        requests = [VerificationRequest(*row) for row in rows]
        places = {name: Source(*source) for name, source in sources.items()}
        verdicts, seconds = await self._do(limits, "verify_some", requests, places, _ANSWER_S)
        done = [verdict for verdict in verdicts if verdict is not None]
        telemetry.count("spftsql_verifier_seconds", seconds)
        telemetry.count("spftsql_verifier_faults", sum(verdict.fault is not None for verdict in done))
        for status, number in Counter(verdict.status for verdict in done).items():
            telemetry.count("spftsql_verifications", number, status=status)
        return [verdict and _verdict_row(verdict) for verdict in verdicts], seconds

    async def contest(
        self, limits: str, source: Row, candidates: Sequence[str], max_rows: int, granted: Granted | None
    ) -> Contest:
        """Executes the candidates for one question; see `Verifier.contest`."""
        place = {"": Source(*source)}
        contest, _ = await self._do(limits, "contest", "", candidates, max_rows, granted, place)
        return cast(Contest, contest)

    async def plan(self, limits: str, source: Row, sql: str, granted: Granted | None) -> Execution:
        """How the engine would execute a statement; see `Verifier.plan`."""
        place = {"": Source(*source)}
        plan, _ = await self._do(limits, "plan", "", sql, granted, place)
        return cast(Execution, plan)

    async def describe(self) -> str:
        """Its version, so that a pool is used again where it fits."""
        return self._version

    async def stats(self) -> dict[str, Any]:
        """Who it is, how busy it is and was, and what its verifiers count (`Verifier.stats`)."""
        stats: dict[str, Any] = {
            "pid": os.getpid(),
            "node": socket.gethostname(),
            "ongoing": len(self._ongoing),
            "busy_seconds": round(self._busy_s, 3),
            "requests": 0,
            "executed": 0,
            "kept": 0,
            "faults": 0,
            "replicas": {},
        }
        for verifier in list(self._verifiers.values()):
            for name, count in verifier.stats().items():
                stats[name] = stats[name] | count if name == "replicas" else stats[name] + count
        return stats

    async def check_health(self) -> None:
        """Raises `Fault` when a call has hung for long, upon which Serve replaces the replica."""
        now = time.monotonic()
        for start, patience in self._ongoing.values():
            if now - start > patience:
                raise Fault(f"a call has been at work for {now - start:.0f} s")

    async def _do(self, limits: str, method: str, *arguments: Any) -> tuple[Any, float]:
        """What a method of the verifier for these limits gives, and the seconds that it took."""
        verifier = self._verifier(limits)
        call, start = object(), time.monotonic()
        self._ongoing[call] = start, max(_STUCK_S, ONGOING * CHUNK * verifier.limits.hard_seconds)
        try:
            return await asyncio.to_thread(_timed, getattr(verifier, method), *arguments)
        finally:
            del self._ongoing[call]
            self._busy_s += time.monotonic() - start

    def _verifier(self, limits: str) -> Verifier:
        if limits not in self._verifiers:
            config = SandboxConfig.model_validate_json(limits)
            self._verifiers[limits] = Verifier(
                {},
                config,
                results=self._results,
                node_cache=self._node_cache,
                index=self._index,
                sandbox=self._sandbox,
            )
        self._verifiers.move_to_end(limits)
        while len(self._verifiers) > _LIMITS_KEPT:
            _, unused = self._verifiers.popitem(last=False)
            unused.close()  # one that is at work after all starts its child again
        return self._verifiers[limits]

    def __del__(self) -> None:
        """Called by Serve when it takes the replica down."""
        for verifier in getattr(self, "_verifiers", {}).values():
            verifier.close()


class PoolGone(Fault):
    """There is no pool any more: it was taken down, not lost."""


class PoolClient:
    """The pool as one caller uses it: with its own databases and limits. Must be used in one event loop.

    Of its calls four for each worker are on their way at a time, however many it is asked for.
    """

    def __init__(self, databases: Databases, limits: SandboxConfig) -> None:
        """The pool must run in this process's Ray session."""
        from ray import serve

        self._handle: DeploymentHandle[Any] = serve.get_app_handle(APP)
        self._limits = limits.model_dump_json()
        self._sources = {name: (s.addresses, s.content) for name, s in sources_of(databases).items()}
        self._looking, self._looked, self._there, self._workers = asyncio.Lock(), 0.0, True, 0
        self._turn, self._ongoing = asyncio.Condition(), 0
        self.busy_s = 0.0  # of workers, with the statements of this client

    async def verify(self, requests: Sequence[VerificationRequest]) -> list[Verdict]:
        """One verdict per request, in the same order. Raises `Fault` (`PoolGone`) when it is the pool that fails."""
        verdicts: list[Verdict | None] = [None] * len(requests)
        while left := [index for index, verdict in enumerate(verdicts) if verdict is None]:
            async with self.turn():
                answers = await self.begin([requests[index] for index in left])
            for index, answer in zip(left, answers, strict=True):
                verdicts[index] = answer
        return cast(list[Verdict], verdicts)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[int]:
        """Waits until a worker can take a call, and gives the number of workers; the call is made within."""
        if not self._looked:
            await self._is_there()
        async with self._turn:
            await self._turn.wait_for(lambda: self._ongoing < _PER_WORKER * self.workers)
            self._ongoing += 1
        try:
            if time.monotonic() - self._looked > 5 * _LOOK_S and not self._looking.locked():
                await self._is_there()
            yield self.workers
        finally:
            async with self._turn:
                self._ongoing -= 1
                self._turn.notify()

    @property
    def workers(self) -> int:
        """How many workers ran a moment ago; 1 where none did."""
        return max(self._workers, 1)

    async def begin(self, requests: Sequence[VerificationRequest]) -> list[Verdict | None]:
        """One call to a worker, which does the requests for two seconds: None for those that are left.

        At least one is done. To be called within a `turn`; raises as `verify`.
        """
        sources = {r.db_id: self._sources[r.db_id] for r in requests if r.db_id in self._sources}
        rows = [_request_row(request) for request in requests]
        answer, seconds = await self._called("verify", self._limits, sources, rows)
        self.busy_s += seconds
        return [None if row is None else Verdict(*row) for row in answer]

    async def contest(
        self, db_id: str, candidates: Sequence[str], max_rows: int, granted: Granted | None = None
    ) -> Contest:
        """Candidates for one question, executed; see `Verifier.contest`.

        Raises `UserError` for an unknown database, `Fault` when they cannot be executed.
        """
        arguments = (self._limits, self._source(db_id), list(candidates), max_rows, granted)
        async with self.turn():
            return cast(Contest, await self._called("contest", *arguments))

    async def plan(self, db_id: str, sql: str, granted: Granted | None = None) -> Execution:
        """How the engine would execute a statement (`Verifier.plan`). Raises as `contest`."""
        arguments = (self._limits, self._source(db_id), sql, granted)
        async with self.turn():
            return cast(Execution, await self._called("plan", *arguments))

    def _source(self, db_id: str) -> Row:
        if db_id not in self._sources:
            raise UserError(f"no database is named {db_id}; known: {', '.join(sorted(self._sources))}")
        return self._sources[db_id]

    async def _called(self, method: str, *arguments: Any) -> Any:
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        async def call() -> Any:
            return await getattr(self._handle, method).remote(*arguments)

        waiting = asyncio.ensure_future(call())
        try:
            # A call to a pool that was taken down would wait for ever.
            while not (await asyncio.wait({waiting}, timeout=_LOOK_S))[0]:
                if not await self._is_there():
                    raise PoolGone("the verifier pool was taken down")
            return waiting.result()
        except (RayError, RayServeException) as error:
            raise Fault(f"the verifier pool failed: {cause_of(error)}") from None
        finally:
            waiting.cancel()

    async def _is_there(self) -> bool:
        """Whether there is a pool; asked once for all calls that wait, together with the number of its workers."""
        async with self._looking:
            if time.monotonic() - self._looked > _LOOK_S / 2:
                workers = await asyncio.to_thread(_workers)
                self._looked, self._there, self._workers = time.monotonic(), workers is not None, workers or 0
                async with self._turn:
                    self._turn.notify_all()
        return self._there


def start_pool(config: Config, sandbox: ExecutorFactory = Sandbox) -> DeploymentHandle[Any]:
    """Starts the pool in this process's Ray session and returns its handle when it answers.

    A running pool of the same code and settings is used as it is, another one is replaced. Its size can be changed
    while it runs (`spftsql.cluster.scaling`). `sandbox` makes what executes the statements. Raises `Fault` when
    the pool does not come up.
    """
    from ray import serve

    from spftsql.serving.endpoint import start_serve  # not needed by the workers, whose memory counts

    start_serve(config)
    handle = _running(pool_version(_settings(config), sandbox))
    if handle is not None:
        return handle
    target = serve.RunTarget(
        pool_application(config, sandbox), name=APP, route_prefix=None, external_scaler_enabled=True
    )
    try:
        serve.run_many([target], wait_for_applications_running=False)
    except RuntimeError as error:
        raise Fault(f"the verifier pool could not be started: {' '.join(str(error).split())[:500]}") from None
    _wait_for_workers(config.verification)
    return serve.get_app_handle(APP)


def pool_application(config: Config, sandbox: ExecutorFactory = Sandbox) -> Application:
    """The pool as an application to be run under the name `APP`, without a route; see `start_pool`."""
    from ray import serve

    deployment = serve.deployment(
        name=DEPLOYMENT,
        num_replicas=config.verification.workers,
        ray_actor_options={"num_cpus": config.verification.cpus, "resources": config.verification.resources},
        max_ongoing_requests=ONGOING,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
        health_check_period_s=2.0,
        health_check_timeout_s=30.0,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=_DRAIN_S,
    )(PoolWorker)
    return deployment.bind(_settings(config), sandbox=sandbox)


def _timed(work: Any, *arguments: Any) -> tuple[Any, float]:
    """What `work` gives, and the seconds that it took, without those that it waited for a thread."""
    start = time.monotonic()
    return work(*arguments), time.monotonic() - start


def _settings(config: Config) -> dict[str, Any]:
    return config.verification.model_dump(mode="json", exclude={"workers", "batch_size", "policy"})


def _wait_for_workers(config: VerificationConfig) -> None:
    """Returns when all workers run, or some have for a while; says on standard error when there is no room for any."""
    import ray
    from ray import serve

    started = time.monotonic()
    first: float | None = None
    told = False
    while True:
        application = serve.status().applications[APP]
        deployment = application.deployments.get(DEPLOYMENT)
        if application.status == "DEPLOY_FAILED":
            message = deployment.message if deployment else application.message
            raise Fault(f"the verifier pool could not be started: {' '.join(message.split())[:500]}")
        states: Mapping[Any, int] = deployment.replica_states if deployment else {}
        running = states.get("RUNNING", 0)
        now = time.monotonic()
        first = now if running and first is None else first
        if running >= config.workers or (first is not None and now - first > _OTHERS_S):
            return
        if not running and now - started > _TELL_S and not told:
            told = True
            free, total = (each.get("CPU", 0) for each in (ray.available_resources(), ray.cluster_resources()))
            line = f"No verifier runs yet: each needs {config.cpus:g} CPU, and {free:g} of {total:g} are free."
            print(line, file=sys.stderr, flush=True)
        if not running and now - started > _FIRST_S:
            raise Fault(f"no verifier could be started within {_FIRST_S:.0f} s")
        time.sleep(_POLL_S)


def pool_stats(timeout_s: float = 10.0) -> list[dict[str, Any]]:
    """What every worker of the running pool says of itself (`PoolWorker.stats`); those that do not answer are left out.

    Raises `Fault` when there is no pool in this process's Ray session.
    """
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        answers = serve.get_app_handle(APP).broadcast("stats").results(timeout_s=timeout_s, return_exceptions=True)
    except RayServeException as error:
        raise Fault(f"no verifier pool runs: {str(error).splitlines()[0]}") from None
    return [answer for answer in answers if isinstance(answer, dict)]


def stop_pool() -> None:
    """Takes the pool down, if there is one."""
    from ray import serve

    if APP in serve.status().applications:
        serve.delete(APP)


def pool_version(settings: Mapping[str, Any], sandbox: ExecutorFactory) -> str:
    """What a pool must have in common with its users: the code of verification, its settings, what executes."""
    return content_hash(source_hash(*_CODE), dict(settings), getattr(sandbox, "__qualname__", repr(sandbox)))


def _workers() -> int | None:
    """How many workers run; None where there is no pool."""
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    try:
        application = serve.status().applications.get(APP)
    except (RayError, RayServeException):
        return None
    if application is None:
        return None
    deployment = application.deployments.get(DEPLOYMENT)
    states: Mapping[Any, int] = deployment.replica_states if deployment else {}
    return states.get("RUNNING", 0)


def _running(version: str) -> DeploymentHandle[Any] | None:
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    application = serve.status().applications.get(APP)
    # One that has just lost a worker is unhealthy until it is replaced, and answers all the same.
    if application is None or application.status not in ("RUNNING", "DEPLOYING", "UNHEALTHY"):
        return None
    try:
        handle: DeploymentHandle[Any] = serve.get_app_handle(APP)
        there = handle.describe.remote().result(timeout_s=_START_S)
    except (RayError, RayServeException, TimeoutError):
        return None
    return handle if there == version else None


def _rank() -> int:
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        return serve.get_replica_context().rank.rank
    except RayServeException:
        return 0

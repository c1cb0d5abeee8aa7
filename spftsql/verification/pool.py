"""The verifier pool: a Ray Serve deployment without an HTTP route, one `Verifier` (and child process) per replica."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spftsql.config import Config, SandboxConfig
from spftsql.endpoint import start_serve
from spftsql.errors import Fault
from spftsql.records import VerificationRequest, content_hash
from spftsql.sandbox.result import Execution
from spftsql.verification.worker import Verifier

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

APP = "verifier"
_START_SECONDS = 60.0


class PoolWorker:
    """What a replica does. The databases' files must be readable where it runs."""

    def __init__(self, databases: Mapping[str, str], sandbox: Mapping[str, Any]) -> None:
        """Takes plain values, because they travel to the replica: files by name, and a `SandboxConfig`'s fields."""
        self._databases = {name: Path(file) for name, file in databases.items()}
        self._sandbox = dict(sandbox)
        self._verifier = Verifier(self._databases, SandboxConfig(**sandbox))

    async def verify(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """`VerificationRequest` rows in, `Verdict` rows out, in the same order."""
        requests = [VerificationRequest(**row) for row in rows]
        verdicts = await asyncio.to_thread(self._verifier.verify, requests)
        return [asdict(verdict) for verdict in verdicts]

    async def run(self, db_id: str, sql: str, max_rows: int) -> Execution:
        """Executes one statement for its rows; raises as `Verifier.run`."""
        return await asyncio.to_thread(self._verifier.run, db_id, sql, max_rows)

    async def describe(self) -> dict[str, Any]:
        """The databases (files by name) and a hash of the limits, so that a pool is reused where it fits."""
        files = {name: str(file) for name, file in self._databases.items()}
        return {"databases": files, "limits": content_hash(self._sandbox)}

    async def check_health(self) -> None:
        """Raises `Fault` when a database's file is gone, upon which Serve replaces the replica."""
        gone = [str(file) for file in self._databases.values() if not file.is_file()]
        if gone:
            raise Fault(f"{gone[0]} is gone")

    def __del__(self) -> None:
        """Called by Serve when it takes the replica down."""
        self._verifier.close()


def start_pool(databases: Mapping[str, Path], config: Config) -> DeploymentHandle[Any]:
    """Starts the pool in this process's Ray session and returns its handle when it answers.

    A running pool that has these databases and limits is reused, another one is replaced. Its size can be changed
    later through Serve's external scaler. Raises `Fault` when the pool does not come up.
    """
    from ray import serve

    start_serve(config)
    files = {name: str(Path(file).resolve()) for name, file in databases.items()}
    limits = config.sandbox.model_dump()
    handle = _running(files, limits)
    if handle is not None:
        return handle
    deployment = serve.deployment(
        name=APP,
        num_replicas=config.verification.workers,
        ray_actor_options={"num_cpus": config.verification.cpus},
        max_ongoing_requests=8,  # with 2 the router waits between tries and a third of the throughput is lost
        logging_config={"log_level": "WARNING", "enable_access_log": False},
        health_check_period_s=2.0,
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=2 * config.sandbox.hard_seconds,
    )(PoolWorker)
    try:
        return serve.run(deployment.bind(files, limits), name=APP, route_prefix=None, external_scaler_enabled=True)
    except RuntimeError as error:
        raise Fault(f"the verifier pool could not be started: {' '.join(str(error).split())[:500]}") from None


def _running(files: Mapping[str, str], limits: Mapping[str, Any]) -> DeploymentHandle[Any] | None:
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    application = serve.status().applications.get(APP)
    if application is None or application.status not in ("RUNNING", "DEPLOYING"):
        return None
    try:
        handle: DeploymentHandle[Any] = serve.get_app_handle(APP)
        there = handle.describe.remote().result(timeout_s=_START_SECONDS)
    except (RayError, RayServeException, TimeoutError):
        return None
    fits = there["databases"].items() >= files.items() and there["limits"] == content_hash(dict(limits))
    return handle if fits else None


def stop_pool() -> None:
    """Takes the pool down, if there is one."""
    from ray import serve

    if APP in serve.status().applications:
        serve.delete(APP)

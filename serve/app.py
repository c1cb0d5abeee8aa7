"""The Ray Serve application: HTTP ingress and model, beside the verifier pool that runs use too."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serve.api import create_api, key_digest
from serve.service import Service
from spftsql.config import Config, DatabaseConfig
from spftsql.databases.catalogue import Database, open_catalogue
from spftsql.endpoint import KEY_VARIABLE, refuse_exposure
from spftsql.errors import Fault
from spftsql.generation.engine import EngineDied, open_engine
from spftsql.generation.vllm_engine import environment
from spftsql.records import GenerationRequest, Sample, Verdict, VerificationRequest
from spftsql.sandbox.result import Execution
from spftsql.verification.pool import PoolClient

_BATCH_WAIT_S = 0.002  # long enough to join requests that arrive together, too short to be felt
_LOAD_ATTEMPTS = 2
_WAITING = 1024  # requests held per replica; the proxy queues the others


class ModelServer:
    """A replica that holds the engine. Requests that arrive while it generates form the next batch."""

    def __init__(self, config: Config, model_dir: Path) -> None:
        """Loads the model, so that the first question does not wait for it."""
        # The engine is built and used in one thread: libraries below it keep state per thread.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._engine = self._thread.submit(open_engine, config).result()
        warm = GenerationRequest("warm", "", "SELECT", str(model_dir), 1, 0.0, 1, 0)
        self._thread.submit(self._engine.generate, [warm]).result()
        self._batched.set_max_batch_size(config.generation.batch_size)  # type: ignore[attr-defined]
        self._died: EngineDied | None = None

    def check_health(self) -> None:
        """Raises when the engine is gone, upon which Serve replaces the replica."""
        if self._died is not None:
            raise self._died

    async def generate(self, request: GenerationRequest) -> list[Sample]:
        """The samples of one request."""
        samples: list[Sample] = await self._batched(request)
        return samples

    @serve.batch(max_batch_size=256, batch_wait_timeout_s=_BATCH_WAIT_S)
    async def _batched(self, requests: list[GenerationRequest]) -> list[list[Sample]]:
        loop = asyncio.get_running_loop()
        try:
            samples = await loop.run_in_executor(self._thread, self._engine.generate, requests)
        except EngineDied as error:
            self._died = error
            raise
        by_id: dict[str, list[Sample]] = {request.id: [] for request in requests}
        for sample in samples:
            by_id[sample.id].append(sample)
        return list(by_id.values())


class RayBackend:
    """The model's and the verifier's deployments as the service's backend; their failures become faults."""

    def __init__(self, model: DeploymentHandle[Any], verifier: PoolClient) -> None:
        """Takes the model's handle and the pool."""
        self._model, self._verifier = model, verifier

    async def generate(self, request: GenerationRequest) -> list[Sample]:
        """See `Backend`."""
        try:
            samples: list[Sample] = await self._model.generate.remote(request)
        except (RayError, RayServeException) as error:
            raise Fault(f"the model's replica failed: {_first_line(error)}") from None
        return samples

    async def verify(self, requests: Sequence[VerificationRequest]) -> list[Verdict]:
        """See `Backend`."""
        return await self._verifier.verify(requests)

    async def run(self, db_id: str, sql: str, max_rows: int) -> Execution:
        """See `Backend`."""
        return await self._verifier.run(db_id, sql, max_rows)


@serve.ingress()
class Endpoint:
    """The ingress: FastAPI over the service."""

    def __init__(
        self,
        model_dir: Path,
        model_name: str,
        catalogue: Mapping[str, Database],
        config: Config,
        digest: bytes | None,
        model: DeploymentHandle[Any],
    ) -> None:
        """Takes the model's handle from the application, and the verifier pool's from the Serve instance."""
        # Without a fixed content: what is asked is answered from the data of the moment.
        places = {name: database.source.addresses for name, database in catalogue.items()}
        backend = RayBackend(model, PoolClient(places, config.sandbox))
        self._service = Service(model_dir, model_name, catalogue, config, backend)
        self._digest = digest

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self._service, self._digest)


def build_app(model_dir: Path, model_name: str, databases: Mapping[str, str], config: Config) -> serve.Application:
    """The application that serves `model_dir` as `model_name` over `databases` (name to URL).

    The verifier pool over the same databases must run beside it (`spftsql.endpoint` starts both). Raises
    `UserError` for a database that cannot be read, and for an address beyond loopback without a key in
    `SPFTSQL_API_KEY`.
    """
    key = os.environ.get(KEY_VARIABLE) or None
    refuse_exposure(config.serve.host, key)
    generation = config.generation
    model = serve.deployment(
        name="model",
        max_ongoing_requests=_WAITING,
        max_constructor_retry_count=_LOAD_ATTEMPTS,
        ray_actor_options={
            "num_cpus": generation.cpus,
            "num_gpus": generation.gpus,
            "runtime_env": {"env_vars": environment(cpu=not generation.gpus)},
        },
    )(ModelServer)
    ingress = serve.deployment(name="ingress", max_ongoing_requests=_WAITING, ray_actor_options={"num_cpus": 0.25})(
        Endpoint
    )
    return ingress.bind(
        model_dir,
        model_name,
        serve_catalogue(databases, config),
        config,
        key_digest(key) if key else None,
        model.bind(config, model_dir),
    )


def serve_catalogue(databases: Mapping[str, str], config: Config) -> dict[str, Database]:
    """The reflected databases, with the keys that `data.databases` adds to one of the same name."""
    keys = {database.name: database.foreign_keys for database in config.data.databases}
    return open_catalogue(
        DatabaseConfig(name=name, url=url, foreign_keys=keys.get(name, ())) for name, url in databases.items()
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)

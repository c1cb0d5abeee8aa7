"""The Ray Serve application: HTTP ingress and model, beside the verifier pool that runs use too."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve.api import create_api
from serve.backend import RayBackend
from serve.metrics import Metrics
from serve.models import PortableModel, VllmModel
from serve.service import Service
from spftsql.config import Config, DatabaseConfig
from spftsql.databases.catalogue import Database, open_catalogue
from spftsql.generation.vllm_options import environment
from spftsql.serving.endpoint import KEY_VARIABLE, refuse_exposure
from spftsql.serving.keys import KeyRing, key_hash, read_keys, unknown_grants
from spftsql.verification.pool import PoolClient

_LOAD_ATTEMPTS = 2
_WAITING = 1024  # requests held per replica; the proxy queues the others
_DRAIN_S = 120.0  # for a replica that is replaced to answer what it has begun


@serve.ingress()
class Endpoint:
    """The ingress: FastAPI over the service."""

    def __init__(
        self,
        models: Mapping[str, Path],
        catalogue: Mapping[str, Database],
        config: Config,
        owner_key: str | None,
        model: DeploymentHandle[Any],
    ) -> None:
        """Takes the model's handle from the application, and the verifier pool's from the Serve instance."""
        _log_requests()
        metrics = Metrics(_replica())
        # Without a fixed content: what is asked is answered from the data of the moment.
        places = {name: database.source.addresses for name, database in catalogue.items()}
        backend = RayBackend(model, PoolClient(places, config.sandbox), metrics)
        self._service = Service(models, catalogue, config, backend, metrics)
        self._keys = KeyRing(config.serve.keys, owner_key)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self._service, self._keys)


def build_app(
    model_dir: Path,
    model_name: str,
    databases: Mapping[str, str],
    config: Config,
    adapters: Mapping[str, Path] | None = None,
) -> serve.Application:
    """The application that serves `model_dir` as `model_name` over `databases` (name to URL).

    `adapters` are further directories over the same base model by name, for the completions. The verifier pool must
    run beside it (`spftsql.serving.endpoint` starts both). Raises `UserError` for a database that cannot be read,
    and for an address beyond loopback without keys.
    """
    owner_key = os.environ.get(KEY_VARIABLE) or None
    refuse_exposure(config.serve, owner_key)
    generation, options = config.generation, config.serve
    catalogue = serve_catalogue(databases, config)
    if options.keys is not None:
        for line in unknown_grants(read_keys(options.keys), {name: db.schema for name, db in catalogue.items()}):
            print(line, file=sys.stderr, flush=True)
    scaling: dict[str, Any] = {"num_replicas": options.replicas}
    if options.max_replicas is not None:
        scaling = {
            "autoscaling_config": {
                "min_replicas": options.replicas,
                "initial_replicas": options.replicas,
                "max_replicas": options.max_replicas,
                "target_ongoing_requests": options.requests_per_replica,
                "downscale_delay_s": options.idle_seconds,
            }
        }
    variables = environment(cpu=not generation.gpus)
    model = serve.deployment(
        name="model",
        max_ongoing_requests=_WAITING,
        max_constructor_retry_count=_LOAD_ATTEMPTS,
        graceful_shutdown_timeout_s=_DRAIN_S,
        health_check_period_s=5.0,
        ray_actor_options={
            "num_cpus": generation.cpus,
            "num_gpus": generation.gpus,
            "resources": generation.resources,
            "runtime_env": {"env_vars": variables},
        },
        **scaling,
    )(VllmModel if generation.engine == "vllm" else PortableModel)
    ingress = serve.deployment(
        name="ingress",
        num_replicas=options.ingress_replicas,
        max_ongoing_requests=_WAITING,
        graceful_shutdown_timeout_s=_DRAIN_S,
        ray_actor_options={"num_cpus": 0.25},
    )(Endpoint)
    models = {model_name: model_dir, **(adapters or {})}
    directories = tuple(str(directory) for directory in models.values())
    return ingress.bind(
        models,
        catalogue,
        config,
        key_hash(owner_key) if owner_key else None,
        model.bind(config, directories),
    )


def serve_catalogue(databases: Mapping[str, str], config: Config) -> dict[str, Database]:
    """The reflected databases, with the keys and descriptions that `data.databases` has for one of the same name."""
    known = {database.name: database for database in config.data.databases}
    return open_catalogue(
        DatabaseConfig(
            name=name,
            url=url,
            foreign_keys=known[name].foreign_keys if name in known else (),
            descriptions=known[name].descriptions if name in known else None,
        )
        for name, url in databases.items()
    )


def _replica() -> str:
    try:
        return str(serve.get_replica_context().replica_id.unique_id)
    except Exception:  # not within Serve
        return uuid.uuid4().hex[:8]


def _log_requests() -> None:
    """Request lines go to standard error, which Ray keeps with the replica's logs."""
    logger = logging.getLogger("spftsql.requests")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False

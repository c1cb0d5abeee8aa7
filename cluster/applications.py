"""The endpoint for a Serve configuration file (RayService, `serve deploy`): two applications over the same arguments.

`spftsql serve` starts both by itself; a cluster that is described by files names them, with `Arguments` as `args`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray.serve import Application

from spftsql.serving.plan import ServingPlan, serving_plan


class Arguments(BaseModel):
    """What is served, and what its parts take of the cluster."""

    model_config = ConfigDict(extra="forbid")

    model: str  # a run directory, or a model directory
    databases: dict[str, str] = {}  # name to file or URL; empty: those of the run
    engine: str = "vllm"
    cpus: float = 1  # of the model's replica
    gpus: float = 0
    verifiers: int = 2
    verifier_resources: dict[str, float] = {}
    settings: dict[str, Any] = {}  # of the configuration, by dotted name: serve.keys, serve.max_replicas, …


def verifier(arguments: dict[str, Any]) -> Application:
    """The verifier pool: an application called `verifier`, without a route. Raises as `serving_plan`.

    It takes `Arguments` as a dictionary: Serve finds no class in an annotation that is evaluated late.
    """
    from spftsql.verification.pool import pool_application

    return pool_application(_plan(arguments).config)


def endpoint(arguments: dict[str, Any]) -> Application:
    """The model and its routes; the application `verifier` runs beside it. Raises as `serve.app.build_app`."""
    from serve.app import build_app

    plan = _plan(arguments)
    return build_app(plan.model, plan.name, plan.databases, plan.config, plan.adapters)


def _plan(given: dict[str, Any]) -> ServingPlan:
    arguments = Arguments.model_validate(given)
    databases = [f"{name}={url}" for name, url in arguments.databases.items()]
    # Where the cluster's proxies listen, from other machines too: without a key in SPFTSQL_API_KEY this is refused.
    settings = [f"{name}={json.dumps(value)}" for name, value in arguments.settings.items()]
    plan = serving_plan(arguments.model, databases, "0.0.0.0", 8000, arguments.engine, settings)
    config = plan.config
    changed = config.model_copy(
        update={
            "generation": config.generation.model_copy(
                update={"cpus": arguments.cpus, "gpus": arguments.gpus, "resources": {}}
            ),
            "verification": config.verification.model_copy(
                update={"workers": arguments.verifiers, "resources": arguments.verifier_resources}
            ),
        }
    )
    return replace(plan, config=changed)

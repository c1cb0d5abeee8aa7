"""The Ray session of a run: one, joined or started, with quiet logs."""

from __future__ import annotations

import logging
import os
import warnings

from spftsql.config import Config
from spftsql.errors import UserError

_WORKER_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "RAY_TRAIN_V2_ENABLED": "1",
    "PYTHONWARNINGS": "ignore",
}


def ensure_session(config: Config) -> None:
    """Connects to `cluster.address`, or starts a local session; does nothing when this process has one already.

    Raises `UserError` when the address cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    import ray

    if ray.is_initialized():
        return
    warnings.filterwarnings("ignore", module="ray")
    runtime_env = {"env_vars": _WORKER_ENVIRONMENT}
    address = config.cluster.address
    if address is None:
        ray.init(
            address="local",
            num_cpus=config.cluster.cpus,
            include_dashboard=config.cluster.dashboard,
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env=runtime_env,
        )
        return
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=runtime_env)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"Ray cannot be reached at {address}: {str(error).splitlines()[0]}") from None


def end_session() -> None:
    """Ends the session of this process, with the actors and deployments in it."""
    import ray

    if ray.is_initialized():
        ray.shutdown()

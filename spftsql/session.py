"""The Ray session of a run: one, joined or started, with quiet logs."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from spftsql.config import Config
from spftsql.errors import UserError

_REACH_S = 5.0
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
    # Ray's C++ writes to this terminal whatever the Python log level is, complaints of no use to a person included.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(config.cluster.cpus))
    import ray

    if ray.is_initialized():
        return
    warnings.filterwarnings("ignore", module="ray")
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": _WORKER_ENVIRONMENT},
    }
    address = config.cluster.address
    if address is None:
        options |= {"address": "local", "num_cpus": config.cluster.cpus, "dashboard_host": "127.0.0.1"}
        options |= {"include_dashboard": config.cluster.dashboard}
    else:
        _check_reachable(address)
        use_token()
        options |= {"address": address}
    try:
        with _silent_stderr():
            ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"be reached at {address}" if address else "start here"
        hint = "; if the cluster wants a token, set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH" if address else ""
        raise UserError(f"Ray cannot {where}: {str(error).splitlines()[0]}{hint}") from None
    _quiet_logs()
    if address is not None:
        _check_capacity(config)


def use_token() -> None:
    """Has Ray send the cluster's token where there is one: the clients do so only if RAY_AUTH_MODE says so."""
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _check_capacity(config: Config) -> None:
    """Refuses a recipe that the cluster of this session can never run, and says what nodes must come for it."""
    import ray
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    from spftsql.capacity import needs, refuse_impossible
    from spftsql.job_server import has_fixed_size

    told = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    offers = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for line in refuse_impossible(needs(config), offers, has_fixed_size(json.loads(told) if told else {})):
        print(f"spftsql: {line}; waiting for nodes that the autoscaler brings", file=sys.stderr, flush=True)


def end_session() -> None:
    """Ends the session of this process, with the actors and deployments in it."""
    import ray

    if ray.is_initialized():
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself tries for two minutes before it says that nobody listens."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto", or a name that Ray knows
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except OSError as error:
        raise UserError(f"Ray cannot be reached at {address}: {error.strerror or error}; is the cluster up?") from None


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discards what is written to the file descriptor itself, which Ray's C++ does while it starts."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _quiet_logs() -> None:
    import ray.data

    for name in ("ray.data", "ray.serve", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False

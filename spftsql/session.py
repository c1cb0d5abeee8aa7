"""The Ray session of a run: one, joined or started, with quiet logs."""

from __future__ import annotations

import logging
import os
import socket
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
        options |= {"address": address}
    try:
        with _silent_stderr():
            ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"be reached at {address}" if address else "start here"
        raise UserError(f"Ray cannot {where}: {str(error).splitlines()[0]}") from None
    _quiet_logs()


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

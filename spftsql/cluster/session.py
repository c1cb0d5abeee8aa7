"""The Ray session of a run: one, joined or started, with quiet logs."""

from __future__ import annotations

import atexit
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any

from spftsql.config import Config
from spftsql.errors import UserError

_REACH_S = 5.0
_LOOK_S = 5.0
# A head may come back (with Redis), and Ray ends its drivers after a minute without it; a node's own process does not.
_GONE_S = {"head": 45.0, "node": 10.0}
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
    # Serve kills a proxy that is not ready in 5 s, which on a busy machine none is, and `serve.start` fails.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
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
            _for_good(lambda: ray.init(**options))
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"be reached at {address}" if address else "start here"
        hint = "; if the cluster wants a token, set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH" if address else ""
        raise UserError(f"Ray cannot {where}: {str(error).splitlines()[0]}{hint}") from None
    _quiet_logs()
    _end_with_the_cluster(address or "this machine")
    if address is not None:
        _check_capacity(config)


def _for_good(start: Callable[[], object]) -> None:
    """Calls `start` in a thread that stays: Linux kills the processes of a session with the thread that started them.

    The call may come from a pool of threads that is over long before the run. Raises what `start` raises.
    """
    if threading.current_thread() is threading.main_thread():
        start()
        return
    started: Future[object] = Future()

    def stay() -> None:
        try:
            started.set_result(start())
        except BaseException as error:
            started.set_exception(error)
        threading.Event().wait()

    threading.Thread(target=stay, name="session", daemon=True).start()
    started.result()


def use_token() -> None:
    """Has Ray send the cluster's token where there is one: the clients do so only if RAY_AUTH_MODE says so."""
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _check_capacity(config: Config) -> None:
    """Refuses a recipe that the cluster of this session can never run, and says what nodes must come for it."""
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    from spftsql.planning.capacity import needs, refuse_impossible
    from spftsql.submitting.server import has_fixed_size

    told = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    for line in refuse_impossible(needs(config), offers(), has_fixed_size(json.loads(told) if told else {})):
        print(f"spftsql: {line}; waiting for nodes that the autoscaler brings", file=sys.stderr, flush=True)


def offers() -> list[Mapping[str, float]]:
    """What each living node of this session's cluster offers."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def end_session() -> None:
    """Ends the session of this process, with the actors and deployments in it."""
    import ray

    if ray.is_initialized():
        ray.shutdown()
        if "ray.serve" in sys.modules:  # it tells sessions apart by their job, and the first of every one is the same
            from ray.serve.context import _disconnect

            _disconnect()
    _last_words.close()


def _end_with_the_cluster(where: str) -> None:
    """Has this process end with a line when its cluster is gone: Ray would wait for it, and end it in silence."""
    import ray
    from ray._private.worker import _global_node as node  # nothing public tells where the two listen

    if node is None:  # a session through Ray's client, whose server ends it
        return
    host, _, port = node.gcs_address.rpartition(":")
    reach = {
        "head": lambda: socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S),
        "node": lambda: _unix_connection(node.raylet_socket_name),
    }
    _last_words.callback(_say_when_killed(where))
    threading.Thread(target=_watch, args=(reach, where, ray.is_initialized), name="cluster", daemon=True).start()


_last_words = ExitStack()  # closed: nothing is left to be said
atexit.register(_last_words.close)


def _say_when_killed(where: str) -> Callable[[], None]:
    """Has a line said when this process ends without a word; returns what takes that back.

    Ray ends a driver in silence that needs its node in the seconds before `_watch` finds that one gone.
    """
    line = f"spftsql: killed, or ended because the Ray node at {where} is gone; what is finished is kept: run again"
    script = 'trap "" INT TERM; read -r over || echo "$0" >&2'
    shell = subprocess.Popen(["sh", "-c", script, line], stdin=subprocess.PIPE, text=True)

    def take_back() -> None:
        shell.communicate("over\n")

    return take_back


def _end(code: int) -> None:
    _last_words.close()
    os._exit(code)


def _watch(
    reach: Mapping[str, Callable[[], socket.socket]],
    where: str,
    at_work: Callable[[], bool],
    end: Callable[[int], object] = _end,
    look_s: float = _LOOK_S,
) -> None:
    """Looks every few seconds whether the processes of the cluster listen, while `at_work`.

    Gone is who once listened and now refuses: whoever is slow to answer has much to do.
    """
    missed: dict[str, int] = {}  # of those that once listened
    while at_work():
        for name, connect in reach.items():
            try:
                connect().close()
                missed[name] = 0
            except (ConnectionRefusedError, FileNotFoundError):
                if name in missed:
                    missed[name] += 1
            except OSError:
                continue
            if missed.get(name, 0) * _LOOK_S >= _GONE_S[name]:
                line = f"the Ray {name} at {where} is gone; what is finished is kept: run again when it is back"
                print(f"spftsql: {line}", file=sys.stderr, flush=True)
                end(4)
                return
        time.sleep(look_s)


def _unix_connection(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(_REACH_S)
        connection.connect(path.removeprefix("unix://"))
    except BaseException:
        connection.close()
        raise
    return connection


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

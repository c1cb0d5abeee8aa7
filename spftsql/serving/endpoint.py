"""Starting the endpoint and taking it down. The application itself is in `serve`, its client in `client`."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from rich.console import Console

from spftsql.causes import cause_of
from spftsql.cluster.session import end_session, ensure_session, offers
from spftsql.config import Config, ServeConfig
from spftsql.errors import Fault, UserError
from spftsql.planning.capacity import needs, shortages
from spftsql.serving.keys import read_keys

if TYPE_CHECKING:
    from spftsql.serving.plan import ServingPlan

APP = "endpoint"
KEY_VARIABLE = "SPFTSQL_API_KEY"
_READY_S = 600.0  # a large model takes minutes to load


def start_endpoint(
    model_dir: Path,
    name: str,
    databases: Mapping[str, str],
    config: Config,
    adapters: Mapping[str, Path] | None = None,
) -> str:
    """Serves `model_dir` as `name` over `databases` (name to URL) and returns the base URL once it answers.

    `adapters` of the same base model are served by their names beside it.

    Runs in this process's Ray session and starts one where there is none. Called again, it replaces the model
    that is served: requests in progress end with the old one, others wait until the new one is loaded. Raises
    `UserError` before anything heavy happens: for a database or model directory that cannot be read, a port in use,
    an address beyond loopback without keys, or a machine without room for the model.
    """
    model_dir = model_dir.resolve()
    if not any((model_dir / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise UserError(f"{model_dir} is not a model directory (it has no config.json)")
    config = _absolute(config)
    refuse_exposure(config.serve, os.environ.get(KEY_VARIABLE))
    _refuse_taken_port(config)
    from spftsql.databases.files import database_location
    from spftsql.prompts import PromptBuilder

    for address in databases.values():
        database_location(address)
    PromptBuilder(config.prompt, model_dir, config.model.chat_template)  # refuses a model without a chat template
    from serve.app import build_app

    others = {other: folder.resolve() for other, folder in (adapters or {}).items()}
    application = build_app(model_dir, name, databases, config, others)
    # People wait for it: Ray gives its workers the lowest share of a busy machine (niceness 15).
    os.environ.setdefault("RAY_worker_niceness", "0")
    ensure_session(config)
    if config.cluster.address is None:  # a session on this machine, which nothing will join
        _refuse_impossible(config)
    url = start_serve(config)
    from ray import serve

    from spftsql.verification.pool import start_pool

    start_pool(config)
    try:
        serve.run(application, name=APP, route_prefix="/")
    except RuntimeError as error:
        raise Fault(f"the endpoint could not be started: {' '.join(str(error).split())[:500]}") from None
    wait_ready(url)
    return url


def start_serve(config: Config) -> str:
    """Starts Ray Serve in this session at the endpoint's address, or finds it running; returns its URL.

    The address is fixed by the first start in a session, so whatever uses Serve before the endpoint (the
    verifier pool) must start it here. Raises `UserError` when another address is wanted than the fixed one.
    """
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.config import HTTPOptions

    # Nothing public tells where an instance listens, except through the dashboard.
    from ray.serve.context import _get_global_client
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # of this process; the replicas log to their files
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        _refuse_taken_port(config)
        host, port = config.serve.host, config.serve.port or _free_port(config.serve.host)
        try:
            serve.start(
                proxy_location="HeadOnly",
                http_options=HTTPOptions(host=host, port=port),
                logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
            )
        except (RayError, TimeoutError) as error:  # a first proxy that was too slow; its controller starts another
            if _get_global_client(raise_if_no_controller_running=False) is None:
                raise Fault(f"Ray Serve could not be started: {cause_of(error)}") from None
    else:
        host, port = client.http_config.host, client.http_config.port
        if config.serve.port not in (0, port) or config.serve.host != host:
            raise UserError(
                f"Ray Serve listens on {host}:{port} in this session: set serve.host and serve.port to that"
            )
    return f"http://{_reachable(host)}:{port}"


def refuse_exposure(config: ServeConfig, key: str | None) -> None:
    """Raises `UserError` when the host can be reached from other machines and there is no key; also without its file.

    A file of keys that is not there yet is a mistake, not an endpoint without keys.
    """
    if config.keys is not None:
        read_keys(config.keys)
        return
    try:
        loopback = config.host == "localhost" or ipaddress.ip_address(config.host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and not key:
        raise UserError(
            f"without keys (serve.keys, or one in {KEY_VARIABLE}) the endpoint binds to 127.0.0.1 only, "
            f"not to {config.host}"
        )


def _absolute(config: Config) -> Config:
    """With full paths, because replicas run in other folders."""
    paths = {name: path.resolve() for name in ("keys", "feedback") if (path := getattr(config.serve, name)) is not None}
    return config.model_copy(update={"serve": config.serve.model_copy(update=paths)}) if paths else config


def wait_ready(url: str, seconds: float = _READY_S) -> None:
    """Returns when the endpoint at `url` answers; raises `Fault` when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/healthz", timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise Fault(f"the endpoint at {url} did not answer within {seconds:.0f} s")


def serve_forever(plan: ServingPlan) -> None:
    """Serves until Ctrl-C or SIGTERM, then takes down what it started; says where it listens (stderr).

    Raises what `start_endpoint` raises.
    """
    stop = threading.Event()
    console = Console(stderr=True, highlight=False)
    try:
        url = start_endpoint(plan.model, plan.name, plan.databases, plan.config, plan.adapters)
        # From here on both signals end the wait; Ray has put its own handlers in place by now.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        console.print(f"Serving {plan.name} over {', '.join(plan.databases)} at {url}; Ctrl-C ends it.", markup=False)
        stop.wait()
    except KeyboardInterrupt:
        pass
    finally:
        _take_down(plan.config)


def _take_down(config: Config) -> None:
    import ray
    from ray import serve

    if not ray.is_initialized():
        return
    # Ray complains that the controller of Serve, which is being ended, has ended.
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        if config.cluster.address is None:
            serve.shutdown()
        else:
            serve.delete(APP)  # the cluster's other applications are not ours
        end_session()


def _refuse_impossible(config: Config) -> None:
    """Raises `UserError` when this machine has no room for the model, for which Serve would wait in silence."""
    lacking = shortages(needs(config, ["generation"]), offers())
    if lacking:
        advice = "; `--set generation.gpus=0` serves it on CPUs" if config.generation.gpus else ""
        raise UserError(f"this machine cannot serve it: {'; '.join(lacking)}{advice}")


def _refuse_taken_port(config: Config) -> None:
    """Raises `UserError` when the wanted port is taken by somebody else than this session's own Serve."""
    import ray

    if config.serve.port == 0 or ray.is_initialized() or config.cluster.address is not None:
        return
    with socket.socket(_family(config.serve.host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.serve.host, config.serve.port))
        except OSError as error:
            raise UserError(
                f"cannot listen on {config.serve.host}:{config.serve.port} ({error.strerror}): "
                "set another --port, or 0 for a free one"
            ) from None


def _free_port(host: str) -> int:
    with socket.socket(_family(host)) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _reachable(host: str) -> str:
    """The address under which this machine reaches a server that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host

"""The endpoint from outside: start it, ask it, show its answer. The application itself is in `serve`."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console, Group, RenderableType
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from spftsql.config import Config
from spftsql.errors import Fault, UserError
from spftsql.session import end_session, ensure_session

APP = "endpoint"
KEY_VARIABLE = "SPFTSQL_API_KEY"
_READY_S = 600.0  # a large model takes minutes to load
_ANSWER_S = 300.0


def start_endpoint(model_dir: Path, name: str, databases: Mapping[str, str], config: Config) -> str:
    """Serves `model_dir` as `name` over `databases` (name to URL) and returns the base URL once it answers.

    Runs in this process's Ray session and starts one where there is none. Called again, it replaces the model
    that is served. Raises `UserError` before anything heavy happens: for a database or model directory that
    cannot be read, a port in use, or an address beyond loopback without a key.
    """
    model_dir = model_dir.resolve()
    if not any((model_dir / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise UserError(f"{model_dir} is not a model directory (it has no config.json)")
    refuse_exposure(config.serve.host, os.environ.get(KEY_VARIABLE))
    _refuse_taken_port(config)
    from spftsql.databases.files import database_file
    from spftsql.prompts import PromptBuilder

    for address in databases.values():
        database_file(address)
    PromptBuilder(config.prompt, model_dir, config.model.chat_template)  # refuses a model without a chat template
    from serve.app import build_app

    application = build_app(model_dir, name, databases, config)
    ensure_session(config)
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
    from ray.serve.config import HTTPOptions

    # Nothing public tells where an instance listens, except through the dashboard.
    from ray.serve.context import _get_global_client
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # of this process; the replicas log to their files
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        _refuse_taken_port(config)
        host, port = config.serve.host, config.serve.port or _free_port(config.serve.host)
        serve.start(
            proxy_location="HeadOnly",
            http_options=HTTPOptions(host=host, port=port),
            logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
        )
    else:
        host, port = client.http_config.host, client.http_config.port
        if config.serve.port not in (0, port) or config.serve.host != host:
            raise UserError(
                f"Ray Serve listens on {host}:{port} in this session: set serve.host and serve.port to that"
            )
    return f"http://{_reachable(host)}:{port}"


def refuse_exposure(host: str, key: str | None) -> None:
    """Raises `UserError` when `host` can be reached from other machines and there is no key."""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and not key:
        raise UserError(f"without a key in {KEY_VARIABLE} the endpoint binds to 127.0.0.1 only, not to {host}")


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


def serve_forever(model_dir: Path, name: str, databases: Mapping[str, str], config: Config) -> None:
    """Serves until Ctrl-C or SIGTERM, then takes down what it started; says where it listens (stderr).

    Raises what `start_endpoint` raises.
    """
    stop = threading.Event()
    console = Console(stderr=True, highlight=False)
    try:
        url = start_endpoint(model_dir, name, databases, config)
        # From here on both signals end the wait; Ray has put its own handlers in place by now.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        console.print(f"Serving {name} over {', '.join(databases)} at {url}; Ctrl-C ends it.", markup=False)
        stop.wait()
    except KeyboardInterrupt:
        pass
    finally:
        _take_down(config)


def ask(url: str, database: str | None, question: str, key: str | None = None, n: int = 1) -> dict[str, Any]:
    """The endpoint's answer to a question (`POST /v1/sql`).

    `database` may be left out where only one is served; `key` defaults to the environment variable
    `SPFTSQL_API_KEY`. Raises `UserError` when nothing answers at `url` and when the endpoint refuses the
    question, `Fault` when it fails.
    """
    key = key or os.environ.get(KEY_VARIABLE)
    if database is None:
        served = [entry["id"] for entry in _call(url, "GET", "/v1/databases", key)["data"]]
        if len(served) != 1:
            raise UserError(f"name one of the endpoint's databases with --database: {', '.join(served)}")
        database = served[0]
    return _call(url, "POST", "/v1/sql", key, {"database": database, "question": question, "n": n})


def _call(url: str, method: str, path: str, key: str | None, body: Any = None) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        response = httpx.request(method, f"{url.rstrip('/')}{path}", json=body, headers=headers, timeout=_ANSWER_S)
    except httpx.ConnectError:
        raise UserError(f"no endpoint answers at {url}: start one with `spftsql serve`, or name its --url") from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise UserError(f"{url} is not the address of an endpoint: {error}") from None
    except httpx.TransportError as error:
        raise Fault(f"the endpoint at {url} broke off: {error or type(error).__name__}") from None
    if response.status_code >= 500:
        raise Fault(f"the endpoint at {url} failed ({response.status_code}): {_message(response)}")
    if response.status_code != httpx.codes.OK:
        raise UserError(f"{_message(response)}")
    answer: dict[str, Any] = response.json()
    return answer


def render_answer(answer: Mapping[str, Any]) -> RenderableType:
    """An answer for the terminal: the SQL, what execution said, and the rows."""
    verdict = answer["verdict"]
    ran = verdict["status"] == "ran"
    line = Text(verdict["status"], style="green" if ran else "red")
    if verdict["reason"]:
        line.append(f": {verdict['reason']}", style="default")
    line.append(f"  {verdict['elapsed_ms']:.1f} ms in the database, {answer['timings']['total_ms']:.0f} ms in all")
    parts: list[RenderableType] = [
        Syntax(answer["sql"], "sql", background_color="default", word_wrap=True),
        line,
    ]
    if answer["columns"]:
        table = Table(header_style="bold")
        for column in answer["columns"]:
            table.add_column(Text(str(column)))
        for row in answer["rows"]:
            table.add_row(*(Text("NULL" if cell is None else str(cell)) for cell in row))
        parts.append(table)
        more = " (there are more)" if answer["truncated"] else ""
        parts.append(Text(f"{len(answer['rows'])} rows{more}", style="dim"))
    return Group(*parts)


def _take_down(config: Config) -> None:
    import ray
    from ray import serve

    if ray.is_initialized():
        if config.cluster.address is None:
            serve.shutdown()
        else:
            serve.delete(APP)  # the cluster's other applications are not ours
        end_session()


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


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200] or response.reason_phrase

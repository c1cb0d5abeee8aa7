"""Runs a recipe as a job on a Ray cluster. Code travels; data, models and results stay where the cluster sees them."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml
from rich.console import Console

from spftsql.config import Config, resolve
from spftsql.errors import Fault, UserError
from spftsql.records import content_hash

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

RECIPE_VARIABLE = "SPFTSQL_RECIPE"  # carries the resolved recipe to the job
_PACKAGES = ("spftsql", "jobs", "serve", "cluster")
_REACH_S = 5.0
_console = Console(stderr=True, highlight=False)


def submit(
    recipe: str,
    overrides: Sequence[str],
    address: str,
    follow: bool,
    submission_id: str | None = None,
    python: str | None = None,
) -> int:
    """Submits the loop of `recipe` to the cluster at `address` (`http://HOST:8265`); returns an exit code.

    The submission id derives from the resolved recipe: while such a job is pending or running it is taken up instead
    of a second one being started. With `follow` its output is streamed and its exit code returned. `python` is the
    interpreter on the cluster: this one where the cluster is on this machine, else the first on its path.
    Raises `UserError` for a bad recipe, and when the cluster cannot be reached.
    """
    address = dashboard_url(address)
    local = _is_loopback(urlsplit(address).hostname or "")
    config = resolve(recipe, ["serve.port=0", *overrides, "cluster.address=auto"])
    tree = _placed(config, local)
    client = connect(address)
    job = submit_module(
        client,
        "jobs.run",
        name=submission_id or f"{config.name}-{content_hash(tree)[:8]}",
        environment={RECIPE_VARIABLE: yaml.safe_dump(tree, sort_keys=False)},
        python=python or (sys.executable if local else "python"),
        again=submission_id is None,
    )
    if not follow:
        _console.print(
            f"Job {job}: `ray job logs --follow --address {address} {job}` shows its output.",
            markup=False,
            soft_wrap=True,
        )
        return 0
    return follow_job(client, job)


def submit_module(
    client: JobSubmissionClient,
    module: str,
    *,
    name: str,
    environment: Mapping[str, str],
    python: str,
    again: bool = True,
) -> str:
    """Starts `python -m module` on the cluster, unless a job called `name` is at work; returns the job's id.

    A job of that name that has ended is followed by `name-2`, `name-3`, …, or, without `again`, raises `UserError`.
    """
    from ray.job_submission import JobStatus

    jobs = {job.submission_id: job.status for job in client.list_jobs() if job.submission_id}
    candidate, number = name, 1
    while candidate in jobs:
        if jobs[candidate] in (JobStatus.PENDING, JobStatus.RUNNING):
            _console.print(f"Job {candidate} is {jobs[candidate].value.lower()} already.", markup=False, soft_wrap=True)
            return candidate
        if not again:
            raise UserError(f"there was a job {name} already ({jobs[candidate].value.lower()}): choose another id")
        number += 1
        candidate = f"{name}-{number}"
    with tempfile.TemporaryDirectory(prefix="spftsql-") as folder:
        _copy_code(Path(folder))
        try:
            submitted: str = client.submit_job(
                entrypoint=shlex.join([python, "-m", module]),
                submission_id=candidate,
                runtime_env={"working_dir": folder, "env_vars": dict(environment)},
            )
        except RuntimeError as error:
            raise Fault(f"the cluster refused the job: {' '.join(str(error).split())[:300]}") from None
    return submitted


def follow_job(client: JobSubmissionClient, job: str) -> int:
    """Streams a job's output until it ends; returns its exit code, 1 where it has none."""
    from ray.job_submission import JobStatus

    shown = 0
    try:
        while True:
            shown = asyncio.run(_stream(client, job, shown))
            info = client.get_job_info(job)
            if info.status.is_terminal():
                break
    except KeyboardInterrupt:
        _console.print(f"Job {job} goes on; the same command takes it up again.", markup=False, soft_wrap=True)
        raise
    if info.status == JobStatus.SUCCEEDED:
        return 0
    _console.print(
        f"Job {job} {info.status.value.lower()}: {(info.message or 'no message').splitlines()[0]}",
        markup=False,
        soft_wrap=True,
    )
    return info.driver_exit_code or 1


async def _stream(client: JobSubmissionClient, job: str, shown: int) -> int:
    """Prints the log from character `shown` on; returns how far it got. The stream always begins at the start."""
    position = 0
    async for text in client.tail_job_logs(job):
        sys.stdout.write(text[max(0, shown - position) :])
        sys.stdout.flush()
        position += len(text)
    return max(position, shown)


def connect(address: str) -> JobSubmissionClient:
    """A client of the dashboard at `address`, with the cluster's token; raises `UserError` when it does not answer."""
    url = urlsplit(address)
    try:
        # Ray's client waits for a silent host for minutes; this does not.
        with closing(socket.create_connection((url.hostname, url.port or 8265), timeout=_REACH_S)):
            pass
    except (OSError, ValueError) as error:
        raise UserError(f"Ray cannot be reached at {address}: {error}") from None
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.authentication"):
        logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)  # they tell of every upload, stream and token
    from requests.exceptions import RequestException

    # As `ray.init` does when it joins a cluster: the job client alone sends a token only if RAY_AUTH_MODE says so.
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        return JobSubmissionClient(address)
    except AuthenticationError:
        raise UserError(
            f"the cluster at {address} wants its token: set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        ) from None
    except (ConnectionError, RuntimeError, ValueError, RequestException) as error:
        raise UserError(f"no Ray job server answers at {address}: {' '.join(str(error).split())[:200]}") from None


def dashboard_url(address: str) -> str:
    """The address as a URL; raises `UserError` for one of another kind."""
    address = address if "://" in address else f"http://{address}"
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UserError(f"--address takes the cluster's dashboard as http://HOST:8265, not {address}")
    return address


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _placed(config: Config, local: bool) -> dict[str, Any]:
    """The configuration as the job reads it: paths of this machine made absolute when the cluster is on it.

    Elsewhere a relative path would end in the job's own temporary folder, so it is refused.
    """
    tree = config.model_dump(mode="json", by_alias=True)
    places: list[tuple[dict[str, Any], str]] = [
        (tree, "run_dir"),
        (tree["data"], "root"),
        (tree["model"], "chat_template"),
    ]
    if tree["model"]["path"] and Path(tree["model"]["path"]).exists():  # else the name of a model on the Hub
        places.append((tree["model"], "path"))
    for section, name in places:
        value = section[name]
        if value is None or Path(value).is_absolute():
            continue
        if not local:
            raise UserError(f"{name} is the relative path {value}: name a folder that every node of the cluster sees")
        section[name] = str(Path(value).resolve())
    return tree


def _copy_code(folder: Path) -> None:
    """Copies what runs, and nothing else, from a checkout or from where the packages are installed."""
    for package in _PACKAGES:
        with resources.as_file(resources.files(package)) as source:
            shutil.copytree(source, folder / package, ignore=shutil.ignore_patterns("__pycache__", "*.py[co]"))
    pins = resources.files("spftsql").joinpath("..", "lock")  # a checkout has them beside the package
    if pins.is_dir():
        with resources.as_file(pins) as source:
            shutil.copytree(source, folder / "lock", dirs_exist_ok=True)

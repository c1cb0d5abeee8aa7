"""Runs a recipe as a job on a Ray cluster. Code travels; data, models and results stay where the cluster sees them."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from rich.console import Console

from spftsql.config import Config
from spftsql.errors import Fault, UserError
from spftsql.planning.capacity import needs, refuse_impossible, shortages
from spftsql.recipes import resolve
from spftsql.records import content_hash
from spftsql.sandbox.location import locate
from spftsql.submitting.following import DRIVER_KEY, follow_job
from spftsql.submitting.server import connect, dashboard_url, has_fixed_size, is_this_machine, nodes, settled_status

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

RECIPE_VARIABLE = "SPFTSQL_RECIPE"  # carries the resolved recipe to the job
_PACKAGES = ("spftsql", "jobs", "serve", "cluster")
_ATTEMPTS, _PAUSE_S = 4, 3.0  # of a submission whose connection breaks
Stage = Literal["generate", "verify", "train"]
_NEEDED: Mapping[Stage, str] = {"generate": "generation", "verify": "verification", "train": "training"}
_console = Console(stderr=True, highlight=False)


def submit(
    recipe: str,
    overrides: Sequence[str],
    address: str,
    follow: bool,
    submission_id: str | None = None,
    python: str | None = None,
    stage: Stage | None = None,
    arguments: Sequence[str] = (),
    driver: Mapping[str, float] | None = None,
) -> int:
    """Submits the loop of `recipe`, or one `stage`, to the cluster at `address` (`http://HOST:8265`); an exit code.

    The submission id derives from the resolved recipe: while such a job is pending or running it is taken up instead
    of a second one being started. With `follow` its output is streamed and its exit code returned. `arguments` are
    those of the stage's file in `jobs/`; `driver` is what the job's own process takes of the cluster's resources.
    `python` is the interpreter on the cluster: this one where the cluster is on this machine, else the first on its
    path. Raises `UserError` for a bad recipe, when the cluster cannot be reached, and when it can never run it.
    """
    address = dashboard_url(address)
    local = is_this_machine(address)
    config = resolve(recipe, ["serve.port=0", *overrides, "cluster.address=auto"])
    tree = _placed(config, local)
    client = connect(address)
    wanted = needs(config, [_NEEDED[stage]] if stage else tuple(_NEEDED.values())) if config.execution == "ray" else []
    # Only what seems impossible is looked at twice: the nodes of a cluster that has just started come one by one.
    fixed = bool(shortages(wanted, nodes(client))) and has_fixed_size(settled_status(client))
    for line in refuse_impossible(wanted, nodes(client), fixed):
        _console.print(f"{line}; it waits for nodes that the autoscaler brings.", markup=False, soft_wrap=True)
    job = submit_module(
        client,
        f"jobs.{stage or 'run'}",
        name=submission_id or "-".join([config.name, *([stage] if stage else []), content_hash(tree, *arguments)[:8]]),
        environment={RECIPE_VARIABLE: yaml.safe_dump(tree, sort_keys=False)},
        python=python or (sys.executable if local else "python"),
        again=submission_id is None,
        arguments=arguments,
        driver=driver or {},
    )
    if not follow:
        _console.print(
            f"Job {job}: `spftsql jobs logs --follow --address {address} {job}` shows its output.",
            markup=False,
            soft_wrap=True,
        )
        return 0
    return follow_job(client, job)


def chosen_stage(name: str | None, arguments: Sequence[str]) -> Stage | None:
    """A stage by name. Raises `UserError` for an unknown one, and for options that are missing or belong elsewhere."""
    if name is None:
        if arguments:
            raise UserError(f"{arguments[0]} belongs to one stage: add --stage generate, verify or train")
        return None
    for stage in _NEEDED:
        if stage == name:
            if not {"--input", "--output"} <= set(arguments):
                raise UserError(f"--stage {name} needs --input FILE and --output FOLDER, as the cluster sees them")
            if name != "train" and {"--mode", "--model"} & set(arguments):
                raise UserError("--mode and --model belong to --stage train")
            return stage
    raise UserError(f"unknown stage {name}; use {', '.join(_NEEDED)}")


def submit_module(
    client: JobSubmissionClient,
    module: str,
    *,
    name: str,
    environment: Mapping[str, str],
    python: str,
    again: bool = True,
    arguments: Sequence[str] = (),
    driver: Mapping[str, float] | None = None,
) -> str:
    """Starts `python -m module` on the cluster, unless a job called `name` is at work; returns the job's id.

    A job of that name that has ended is followed by `name-2`, `name-3`, …, or, without `again`, raises `UserError`.
    A connection that breaks meanwhile is tried again; a job that was taken all the same is found by its name.
    """
    from requests.exceptions import ConnectionError, Timeout

    command = shlex.join([python, "-m", module, *arguments])
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            candidate, at_work = _next_id(client, name, again)
            return candidate if at_work else _submit(client, command, candidate, environment, driver or {})
        except (ConnectionError, Timeout) as error:
            if attempt == _ATTEMPTS:
                raise Fault(f"the cluster does not take the job: {type(error).__name__}") from None
            time.sleep(_PAUSE_S)
    raise AssertionError("unreachable")


def _next_id(client: JobSubmissionClient, name: str, again: bool) -> tuple[str, bool]:
    """The id to submit under, or, with True, the id of the job that is at work."""
    jobs = {job.submission_id: job.status for job in client.list_jobs() if job.submission_id}
    candidate, number = name, 1
    while candidate in jobs:
        if not jobs[candidate].is_terminal():
            _console.print(f"Job {candidate} is {jobs[candidate].value.lower()} already.", markup=False, soft_wrap=True)
            return candidate, True
        if not again:
            raise UserError(f"there was a job {name} already ({jobs[candidate].value.lower()}): choose another id")
        number += 1
        candidate = f"{name}-{number}"
    return candidate, False


def _submit(
    client: JobSubmissionClient, command: str, job: str, environment: Mapping[str, str], driver: Mapping[str, float]
) -> str:
    own = {name: amount for name, amount in driver.items() if name not in ("CPU", "GPU")}
    with tempfile.TemporaryDirectory(prefix="spftsql-") as folder:
        _copy_code(Path(folder))
        try:
            submitted: str = client.submit_job(
                entrypoint=command,
                submission_id=job,
                runtime_env={"working_dir": folder, "env_vars": dict(environment)},
                metadata={DRIVER_KEY: json.dumps(dict(driver))},
                entrypoint_num_cpus=driver.get("CPU"),
                entrypoint_num_gpus=driver.get("GPU"),
                entrypoint_resources=own or None,
            )
        except RuntimeError as error:
            if "already" in str(error):  # somebody else's submission of the same came first
                return job
            raise Fault(f"the cluster refused the job: {' '.join(str(error).split())[:300]}") from None
    return submitted


def _placed(config: Config, local: bool) -> dict[str, Any]:
    """The configuration as the job reads it: paths of this machine made absolute when the cluster is on it.

    Elsewhere a relative path would end in the job's own temporary folder, so it is refused.
    """
    tree = config.model_dump(mode="json", by_alias=True)
    places: list[tuple[dict[str, Any], str]] = [
        (tree, "run_dir"),
        (tree["data"], "root"),
        (tree["data"], "feedback"),
        (tree["model"], "chat_template"),
        *((database, "descriptions") for database in tree["data"]["databases"]),
    ]
    if tree["model"]["path"] and Path(tree["model"]["path"]).exists():  # else the name of a model on the Hub
        places.append((tree["model"], "path"))
    for section, name in places:
        if section[name] is not None:
            section[name] = _placed_file(name, section[name], local)
    for database in tree["data"]["databases"]:
        database["url"] = _placed_database(database["url"], local)
        database["replicas"] = [_placed_database(url, local) for url in database["replicas"]]
    return tree


def _placed_file(name: str, value: str, local: bool) -> str:
    if Path(value).is_absolute():
        return value
    if not local:
        raise UserError(f"{name} is the relative path {value}: name a place that every node of the cluster sees")
    return str(Path(value).resolve())


def _placed_database(url: str, local: bool) -> str:
    location = locate(url)
    if location.file is None:
        return url
    scheme, mark, rest = url.partition(":///")
    file = _placed_file("a database's url", rest if mark else url, local)
    return f"{scheme}{mark}{file}" if mark else file


def _copy_code(folder: Path) -> None:
    """Copies what runs, and nothing else, from a checkout or from where the packages are installed."""
    for package in _PACKAGES:
        with resources.as_file(resources.files(package)) as source:
            shutil.copytree(source, folder / package, ignore=shutil.ignore_patterns("__pycache__", "*.py[co]"))
    pins = resources.files("spftsql").joinpath("..", "lock")  # a checkout has them beside the package
    if pins.is_dir():
        with resources.as_file(pins) as source:
            shutil.copytree(source, folder / "lock", dirs_exist_ok=True)

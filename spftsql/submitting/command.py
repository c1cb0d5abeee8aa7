"""`spftsql jobs`: the jobs of a cluster, their output, where they stand, their end."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.table import Table

from spftsql.errors import Fault, UserError
from spftsql.submitting.following import follow_job
from spftsql.submitting.server import connect, dashboard_url

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

_STOP_S, _PENDING_S = 60.0, 5.0
_POLL_S = 0.5


def list_jobs(address: str) -> RenderableType:
    """A table of the cluster's jobs, latest first. Raises `UserError` when it cannot be reached."""
    jobs = [job for job in connect(dashboard_url(address)).list_jobs() if job.submission_id]
    table = Table()
    for column in ("job", "status", "started", "took", "message"):
        table.add_column(column)
    for job in sorted(jobs, key=lambda job: job.start_time or 0, reverse=True):
        table.add_row(job.submission_id, job.status.value.lower(), _started(job), _took(job), _message(job))
    return table


def show_logs(job: str, address: str, follow: bool) -> int:
    """Prints a job's output, with `follow` until it ends; returns an exit code, the job's own with `follow`."""
    client = connect(dashboard_url(address))
    _details(client, job)
    if follow:
        return follow_job(client, job)
    print(client.get_job_logs(job), end="")
    return 0


def job_status(job: str, address: str) -> RenderableType:
    """Where a job stands. Raises `UserError` when there is none of that id."""
    details = _details(connect(dashboard_url(address)), job)
    table = Table(show_header=False)
    rows = {
        "job": job,
        "status": details.status.value.lower(),
        "started": _started(details),
        "took": _took(details),
        "message": _message(details),
        "exit code": "" if details.driver_exit_code is None else str(details.driver_exit_code),
        "command": details.entrypoint,
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    return table


def stop_job(job: str, address: str) -> str:
    """Ends a job and returns a line about it; what its run has finished stays. Raises `Fault` when it does not end.

    One whose driver waits for room cannot be ended at once: Ray does it when the driver gets its room.
    """
    client = connect(dashboard_url(address))
    before = _details(client, job).status
    if before.is_terminal():
        return f"Job {job} has ended already ({before.value.lower()})."
    client.stop_job(job)
    deadline = time.monotonic() + (_STOP_S if before.value == "RUNNING" else _PENDING_S)
    while not (status := client.get_job_status(job)).is_terminal():
        if time.monotonic() > deadline:
            if status.value == "PENDING":
                return f"Job {job} is to stop: Ray ends it when it gets room, or after a quarter of an hour without."
            raise Fault(f"job {job} was told to stop {_STOP_S:.0f} s ago and is {status.value.lower()}")
        time.sleep(_POLL_S)
    return f"Job {job} is {status.value.lower()}; submit the same recipe again to go on."


def stage_arguments(options: dict[str, str | None]) -> list[str]:
    """Options of a stage's file in `jobs/` as its command line."""
    return [part for name, value in options.items() if value is not None for part in (f"--{name}", value)]


def amounts(option: str, items: list[str]) -> dict[str, float]:
    """`NAME=AMOUNT` values of an option as resources. Raises `UserError` for another form."""
    found = {}
    for item in items:
        name, _, amount = item.partition("=")
        try:
            found[name] = float(amount)
        except ValueError:
            raise UserError(f"{option} takes NAME=AMOUNT, such as CPU=1, not {item!r}") from None
    return found


def print_to(console: Console, what: RenderableType) -> None:
    """Prints a table or a line without markup."""
    console.print(what, markup=False, soft_wrap=isinstance(what, str))


def _details(client: JobSubmissionClient, job: str) -> JobDetails:
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        if "does not exist" not in str(error) and "404" not in str(error):
            raise Fault(f"the cluster does not tell of job {job}: {' '.join(str(error).split())[:200]}") from None
        raise UserError(f"there is no job {job}: `spftsql jobs list` shows those that are there") from None


def _started(job: JobDetails) -> str:
    return datetime.fromtimestamp(job.start_time / 1000).isoformat(" ", "seconds") if job.start_time else ""


def _took(job: JobDetails) -> str:
    if not job.start_time:
        return ""
    # The cluster's clock and this one may differ.
    seconds = max(0.0, ((job.end_time or time.time() * 1000) - job.start_time) / 1000)
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 3600:.1f} h"


def _message(job: JobDetails) -> str:
    return (job.message or "").splitlines()[0] if job.message else ""

"""Ray clusters and their jobs: cluster, jobs, scale."""

from __future__ import annotations

from typing import Annotated

import typer

from spftsql.commands.options import Address, JobId, terminal
from spftsql.errors import UserError

scale_app = typer.Typer(help="More or fewer workers while a run goes on.", no_args_is_help=True)
jobs_app = typer.Typer(help="Jobs on a Ray cluster.", no_args_is_help=True)
cluster_app = typer.Typer(help="A Ray cluster on this machine.", no_args_is_help=True)


@cluster_app.command("up")
def cluster_up(
    local: Annotated[bool, typer.Option("--local", help="On this machine.")] = False,
    nodes: Annotated[int, typer.Option(min=1, help="How many nodes.")] = 2,
    cpus: Annotated[int, typer.Option(min=0, help="CPUs that each declares; they are counted, not measured.")] = 4,
    resources: Annotated[
        list[str] | None, typer.Option("--resources", help="A resource of each: NAME=AMOUNT, such as verification=8.")
    ] = None,
) -> None:
    """Starts several Ray nodes on this machine, with a token."""
    from spftsql.cluster import command as cluster_command
    from spftsql.submitting.command import amounts

    cluster_command.cluster_up(local, nodes, cpus, amounts("--resources", resources or []), terminal)


@cluster_app.command("status")
def cluster_status() -> None:
    """Shows the cluster on this machine."""
    from spftsql.cluster import command as cluster_command

    cluster_command.cluster_status(terminal)


@cluster_app.command("down")
def cluster_down() -> None:
    """Ends the cluster on this machine."""
    from spftsql.cluster import command as cluster_command

    cluster_command.cluster_down(terminal)


@jobs_app.command("list")
def jobs_list(address: Address) -> None:
    """The jobs of a cluster, latest first."""
    from spftsql.submitting.command import list_jobs, print_to

    print_to(terminal, list_jobs(address))


@jobs_app.command("logs")
def jobs_logs(
    job: JobId,
    address: Address,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job ends; its exit code is taken.")] = False,
) -> None:
    """The output of a job."""
    from spftsql.submitting.command import show_logs

    raise typer.Exit(show_logs(job, address, follow))


@jobs_app.command("status")
def jobs_status(job: JobId, address: Address) -> None:
    """Where a job stands."""
    from spftsql.submitting.command import job_status, print_to

    print_to(terminal, job_status(job, address))


@jobs_app.command("stop")
def jobs_stop(job: JobId, address: Address) -> None:
    """Ends a job; what its run has finished stays, and the same recipe submitted again goes on."""
    from spftsql.submitting.command import print_to, stop_job

    print_to(terminal, stop_job(job, address))


@scale_app.command("verifiers")
def scale_verifiers(
    address: Annotated[str, typer.Option(help="Address of the cluster's dashboard, as http://HOST:8265.")],
    count: Annotated[int | None, typer.Argument(help="How many verifiers there shall be.")] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait until they run.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for them.")] = 120.0,
    watch: Annotated[bool, typer.Option("--watch", help="Go on scaling between --min and --max.")] = False,
    minimum: Annotated[int, typer.Option("--min", help="Fewest verifiers (with --watch).")] = 1,
    maximum: Annotated[int | None, typer.Option("--max", help="Most verifiers (with --watch).")] = None,
) -> None:
    """Sets the number of verifier workers of a cluster; no verdict is lost or repeated. Exit 2: no room for them."""
    from spftsql.cluster import scaling

    if watch:
        if count is not None or maximum is None:
            raise UserError("--watch takes --max and no number: `spftsql scale verifiers --min 2 --max 32 --watch …`")
        scaling.watch_verifiers(minimum, maximum, address)
    elif count is None:
        raise UserError("say how many: `spftsql scale verifiers 8 --address http://HOST:8265`")
    else:
        scaling.scale_verifiers(count, address, not no_wait, timeout)

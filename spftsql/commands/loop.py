"""The whole loop and what is known of it: demo, run, compare, plan, submit, status, report, pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spftsql.commands.options import Address, Overrides, Recipe, terminal
from spftsql.errors import UserError


def demo(overrides: Overrides = None) -> None:
    """The whole loop on an embedded database with a small model, on CPU; ends with a table and an answered question."""
    from spftsql.demo.command import run_demo

    run_demo(overrides or [], terminal)


def run(
    recipe: Recipe,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, start nothing.")] = False,
    address: Annotated[str | None, typer.Option(help="Address of a running Ray cluster.")] = None,
) -> None:
    """The whole loop of a recipe; running it again resumes."""
    from spftsql.recipes import resolve

    extra = [f"cluster.address={address}"] if address else []
    config = resolve(recipe, ["serve.port=0", *(overrides or []), *extra])  # nothing of a run is served
    if dry_run:
        from spftsql.planning.dry_run import dry_run as plan

        report = plan(config)
        for line in report.lines:
            terminal.print(line, markup=False, soft_wrap=True)
        if report.problems:
            raise UserError("; ".join(report.problems))
        return
    from spftsql.cluster.session import end_session
    from spftsql.progress import Reporter
    from spftsql.selfplay.run import run as run_loop
    from spftsql.selfplay.table import rich_table

    try:
        result = run_loop(config, Reporter())
    finally:
        if config.execution == "ray":
            end_session()
    terminal.print(rich_table(result, f"{config.name}: execution accuracy on the {result.exam} questions"))
    for line in result.sentences:
        terminal.print(line, markup=False, soft_wrap=True)
    terminal.print(f"The run is in {config.run_dir / config.name}; the gate serves {result.served}.", soft_wrap=True)


def compare(
    recipe: Recipe,
    methods: Annotated[
        str, typer.Option(help="Modes of self-play, and vbi for VBI-FT alone, with commas.")
    ] = "sft,vbi,spin,dpo,spft-a,spft-b",
    seeds: Annotated[int, typer.Option(help="How many, from the recipe's own on.")] = 1,
    out: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="Also write the table as JSON.")] = None,
    overrides: Overrides = None,
    address: Annotated[str | None, typer.Option(help="Address of a running Ray cluster.")] = None,
) -> None:
    """Methods side by side on the same questions, common stages done once; running it again resumes."""
    from spftsql.cluster.session import end_session
    from spftsql.comparison.command import run_compare
    from spftsql.comparison.measuring import chosen_methods
    from spftsql.progress import Reporter
    from spftsql.recipes import resolve

    chosen = chosen_methods(methods)
    extra = [f"cluster.address={address}"] if address else []
    config = resolve(recipe, ["serve.port=0", *(overrides or []), *extra])
    try:
        run_compare(config, chosen, seeds, out, Reporter(), terminal)
    finally:
        if config.execution == "ray":
            end_session()


def plan(
    recipe: Annotated[str | None, typer.Argument(help="A recipe or a YAML file; else that of --actual.")] = None,
    overrides: Overrides = None,
    gpus: Annotated[str | None, typer.Option(help="What it would run on, as 8xH100; without it: counts only.")] = None,
    price: Annotated[float | None, typer.Option(help="What one GPU costs an hour.")] = None,
    actual: Annotated[Path | None, typer.Option(metavar="RUN", help="A run: planned beside what it took.")] = None,
    simulate: Annotated[bool, typer.Option(help="Wall clock and idle shares with 1, 8, 64 and 512 GPUs.")] = False,
    calibrate: Annotated[
        Path | None, typer.Option(metavar="RUN", help="A finished run whose rates the simulation takes.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Tokens, statements, GPU-hours, disk and money of every stage, before anything is started."""
    from spftsql.planning.report import run_plan

    run_plan(recipe, overrides or [], gpus, price, actual, as_json, terminal, simulate, calibrate)


def submit(
    recipe: Recipe,
    address: Address,
    overrides: Overrides = None,
    follow: Annotated[bool, typer.Option("--follow", help="Stream the job's output and wait for its end.")] = False,
    submission_id: Annotated[str | None, typer.Option(help="Default: derived from the recipe.")] = None,
    stage: Annotated[str | None, typer.Option(help="One stage alone: generate, verify or train.")] = None,
    source: Annotated[str | None, typer.Option("--input", help="With --stage: a Parquet file of its rows.")] = None,
    target: Annotated[str | None, typer.Option("--output", help="With --stage: the folder that it makes.")] = None,
    mode: Annotated[str | None, typer.Option(help="With --stage train: sft, spin, dpo, spft-a or spft-b.")] = None,
    model: Annotated[str | None, typer.Option(help="With --stage train: the model directory to start from.")] = None,
    driver: Annotated[
        list[str] | None, typer.Option("--driver", help="What the job's own process takes: NAME=AMOUNT, such as CPU=1.")
    ] = None,
) -> None:
    """Runs a recipe, or one stage, as a job on a Ray cluster; the code is uploaded, data and models are not."""
    from spftsql.submitting.command import amounts, stage_arguments
    from spftsql.submitting.submission import chosen_stage
    from spftsql.submitting.submission import submit as submit_job

    arguments = stage_arguments({"input": source, "output": target, "mode": mode, "model": model})
    chosen = chosen_stage(stage, arguments)
    options = (chosen, arguments, amounts("--driver", driver or []))
    raise typer.Exit(submit_job(recipe, overrides or [], address, follow, submission_id, None, *options))


def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, as RUN_DIR/NAME.")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON; with --watch one line per change.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until no process works on the run any more.")] = False,
) -> None:
    """Where a run stands: stages, candidates, accuracy, cost, what is running where. Only reads."""
    from spftsql.reporting.status import run_status

    run_status(run, terminal, as_json, watch)


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, as RUN_DIR/NAME; it need not be done.")],
    out: Annotated[Path | None, typer.Option(help="The page to write; default: report.html in the run.")] = None,
) -> None:
    """Writes one self-contained HTML page about a run."""
    from spftsql.reporting.report_page import run_report

    terminal.print(f"The report is in {run_report(run, out)}.", markup=False, soft_wrap=True)


def pairs(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, as RUN_DIR/NAME.")],
    where: Annotated[str | None, typer.Option(help='A condition in SQL: "kept AND confidence < 0.5".')] = None,
    columns: Annotated[str | None, typer.Option(help="Columns or expressions, with commas; * for all.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="As CSV, with a header.")] = False,
) -> None:
    """A run's synthetic pairs, kept and dropped, with all that they were made from. Only reads."""
    from spftsql.selfplay.pairs_command import show_pairs

    show_pairs(run, where, columns, limit, as_json, as_csv, terminal)

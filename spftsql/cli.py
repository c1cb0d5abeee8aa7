"""The `spftsql` command. Every heavy import is inside the command that needs it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from spftsql.errors import Fault, UserError
from spftsql.records import POLICIES, Policy

# Looking for plugins of pydantic reads the metadata of every package that is installed; none is wanted here.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

app = typer.Typer(
    name="spftsql",
    help="Turns your databases and an open-weights model into a better Text-to-SQL model, and serves it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
config_app = typer.Typer(help="Configuration.", no_args_is_help=True)
data_app = typer.Typer(help="Benchmark data.", no_args_is_help=True)
app.add_typer(config_app, name="config")
scale_app = typer.Typer(help="More or fewer workers while a run goes on.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(scale_app, name="scale")
templates_app = typer.Typer(help="SQL templates: structures without tables, columns and values.", no_args_is_help=True)
app.add_typer(templates_app, name="templates")

Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a configuration key: a.b=value.")]
Recipe = Annotated[str, typer.Argument(help="Name of a recipe that comes with the package, or a YAML file.")]
Databases = Annotated[list[str] | None, typer.Option("--db", help="A database as NAME=FILE or NAME=sqlite:///FILE.")]

_out = Console(highlight=False)


@app.command()
def demo(overrides: Overrides = None) -> None:
    """The whole loop on an embedded database with a small model, on CPU; ends with a table and an answered question."""
    from spftsql.demo.command import run_demo

    run_demo(overrides or [], _out)


@app.command()
def run(
    recipe: Recipe,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, start nothing.")] = False,
    address: Annotated[str | None, typer.Option(help="Address of a running Ray cluster.")] = None,
) -> None:
    """The whole loop of a recipe; running it again resumes."""
    from spftsql.config import resolve

    extra = [f"cluster.address={address}"] if address else []
    config = resolve(recipe, ["serve.port=0", *(overrides or []), *extra])  # nothing of a run is served
    if dry_run:
        from spftsql.plan import dry_run as plan

        report = plan(config)
        for line in report.lines:
            _out.print(line, markup=False, soft_wrap=True)
        if report.problems:
            raise UserError("; ".join(report.problems))
        return
    from spftsql.progress import Reporter
    from spftsql.selfplay.run import run as run_loop
    from spftsql.selfplay.table import rich_table
    from spftsql.session import end_session

    try:
        result = run_loop(config, Reporter())
    finally:
        if config.execution == "ray":
            end_session()
    _out.print(rich_table(result, f"{config.name}: execution accuracy on the test questions"))
    for decision in result.decisions:
        _out.print(decision.sentence(), soft_wrap=True)
    _out.print(f"The run is in {config.run_dir / config.name}; the gate serves {result.served}.", soft_wrap=True)


@app.command()
def submit(
    recipe: Recipe,
    address: Annotated[str, typer.Option(help="Address of the cluster's job server, as http://HOST:8265.")],
    overrides: Overrides = None,
    follow: Annotated[bool, typer.Option("--follow", help="Stream the job's output and wait for its end.")] = False,
    submission_id: Annotated[str | None, typer.Option(help="Default: derived from the recipe.")] = None,
) -> None:
    """Runs a recipe as a job on a Ray cluster; the code is uploaded, data and models are not."""
    from spftsql.submission import submit as submit_job

    raise typer.Exit(submit_job(recipe, overrides or [], address, follow, submission_id))


@app.command()
def score(
    benchmark: Annotated[str, typer.Option(help="spider, bird, geoquery or jsonl")],
    root: Annotated[Path, typer.Option(help="Folder of the benchmark, as it is published.")],
    predictions: Annotated[
        Path, typer.Option(help="Predicted SQL: lines, BIRD's JSON, or rows (JSON, JSON lines, CSV) with a key.")
    ],
    split: Annotated[
        str | None,
        typer.Option(help="Which questions: dev, test, mini_dev, query-test, …; default: the first that is there."),
    ] = None,
    databases: Annotated[
        Path | None, typer.Option(help="Folder of database files, or a YAML file of name: file or URL.")
    ] = None,
    db: Databases = None,
    policy: Annotated[str | None, typer.Option(help="spider, bird or strict; default: the benchmark's own.")] = None,
    keep_distinct: Annotated[bool, typer.Option("--keep-distinct", help="Do not ignore DISTINCT (spider).")] = False,
    suite: Annotated[
        int, typer.Option(min=0, help="Test-suite accuracy: up to so many perturbed instances for each gold.")
    ] = 0,
    metrics: Annotated[
        str, typer.Option(help="Besides ex, and ts with --suite: exact-match, soft-f1, ves, r-ves; with commas.")
    ] = "ex",
    repeats: Annotated[
        int, typer.Option(min=1, help="Timed runs of each correct prediction, for ves and r-ves.")
    ] = 100,
    against: Annotated[
        Path | None, typer.Option(help="Another predictions file: McNemar's test on the same questions.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that execute SQL.")] = 2,
    timeout: Annotated[float, typer.Option(help="Seconds for one statement.")] = 30,
    max_rows: Annotated[int, typer.Option(min=1, help="Rows of one result.")] = 1_000_000,
    memory_mb: Annotated[int, typer.Option(min=64, help="Memory of one process that executes SQL.")] = 2048,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Keep no results of golds on disk, and use none.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--json", help="Write the verdict of every item here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables here as Markdown.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write one page with all questions and results here.")] = None,
) -> None:
    """Scores a file of predicted SQL by execution."""
    from spftsql.evaluation.command import run_score
    from spftsql.evaluation.scoring import ScoreOptions, limits

    options = ScoreOptions(
        benchmark=benchmark,
        root=root,
        predictions=predictions,
        split=split,
        databases=databases,
        named=tuple(db or ()),
        policy=_policy(policy),
        keep_distinct=keep_distinct,
        suite=suite,
        metrics=tuple(name.strip() for name in metrics.split(",") if name.strip()),
        repeats=repeats,
        against=against,
        workers=workers,
        limits=limits(timeout, max_rows, memory_mb),
        cache=not no_cache,
    )
    run_score(options, _out, out, markdown, html)


@app.command()
def verify(
    db: Annotated[str, typer.Option("--db", help="The database: a file, or a URL: sqlite, duckdb or postgresql.")],
    sql: Annotated[str, typer.Option(help="One SELECT statement.")],
    gold: Annotated[str | None, typer.Option(help="The statement that it is compared with.")] = None,
    policy: Annotated[str, typer.Option(help="spider, bird or strict")] = "strict",
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
) -> None:
    """Executes one statement in the sandbox. Exit 0: ran or equal; 1: another verdict; 3: refused; 4: fault."""
    from dataclasses import asdict

    from spftsql.config import SandboxConfig
    from spftsql.databases.files import database_location
    from spftsql.records import VerificationRequest
    from spftsql.verification.worker import Verifier

    chosen = _policy(policy) or "strict"
    location = database_location(db)
    if location.engine == "postgresql":
        from spftsql.databases.server import check_server

        for warning in check_server(location):
            Console(stderr=True, highlight=False).print(f"spftsql: {warning}", markup=False, soft_wrap=True)
    with Verifier({"db": location.url}, SandboxConfig()) as verifier:
        (verdict,) = verifier.verify([VerificationRequest("1", "db", sql, gold, chosen)])
    if as_json:
        print(json.dumps(asdict(verdict)))
    else:
        reason = f" ({verdict.reason})" if verdict.reason else ""
        _out.print(f"{verdict.status}{reason}, {verdict.row_count} rows, {verdict.elapsed_ms:.1f} ms", markup=False)
    if verdict.fault:
        raise Fault(verdict.fault)
    if verdict.status == "error" and verdict.reason.startswith("refused"):
        raise typer.Exit(3)
    raise typer.Exit(0 if verdict.status in ("ran", "equal") else 1)


@app.command()
def schema(
    database: Annotated[str, typer.Argument(help="A database: a file, or a URL: sqlite, duckdb or postgresql.")],
) -> None:
    """The schema text as the model sees it."""
    from spftsql.databases.files import database_location
    from spftsql.databases.reflection import reflect
    from spftsql.databases.schema_text import schema_text

    print(schema_text(reflect("database", database_location(database))))


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="A run directory (its promoted model is served) or a model directory.")],
    db: Databases = None,
    host: Annotated[
        str, typer.Option(help="Address to bind; beyond loopback SPFTSQL_API_KEY must be set.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 picks a free one.")] = 8000,
    engine: Annotated[str, typer.Option(help="vllm or transformers")] = "vllm",
) -> None:
    """Serves a model: /v1/sql, /v1/chat/completions, /v1/models, /healthz. Ends with Ctrl-C."""
    from spftsql.endpoint import serve_forever
    from spftsql.serving import serving_plan

    plan = serving_plan(model, db or [], host, port, engine)
    serve_forever(plan.model, plan.name, plan.databases, plan.config)


@app.command()
def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, as RUN_DIR/NAME.")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON; with --watch one line per change.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until no process works on the run any more.")] = False,
) -> None:
    """Where a run stands: stages, candidates, accuracy, cost, what is running where. Only reads."""
    from spftsql.reporting.status import run_status

    run_status(run, _out, as_json, watch)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="A question in plain words.")],
    database: Annotated[str | None, typer.Option(help="Its database; default: the only one served.")] = None,
    url: Annotated[str, typer.Option(help="The endpoint.")] = "http://127.0.0.1:8000",
    n: Annotated[int, typer.Option(help="Samples to vote over, 1 to 16.")] = 1,
) -> None:
    """Asks a served model; prints SQL, verdict and rows. The key is read from SPFTSQL_API_KEY."""
    from spftsql.endpoint import ask as ask_endpoint
    from spftsql.endpoint import render_answer

    answer = ask_endpoint(url, database, question, key=os.environ.get("SPFTSQL_API_KEY"), n=n)
    _out.print(render_answer(answer))


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> None:
    """What is installed, what is missing, and the command that mends it."""
    from dataclasses import asdict

    from spftsql.doctor import diagnose, failed, render

    checks = diagnose()
    if as_json:
        print(json.dumps([asdict(check) for check in checks]))
    else:
        _out.print(render(checks))
    if failed(checks):
        raise typer.Exit(1)


@config_app.command("show")
def config_show(recipe: Recipe, overrides: Overrides = None) -> None:
    """Prints the resolved configuration of a recipe."""
    import yaml

    from spftsql.config import resolve

    print(
        yaml.safe_dump(resolve(recipe, overrides or []).model_dump(mode="json", by_alias=True), sort_keys=False),
        end="",
    )


@data_app.command("check")
def data_check(
    root: Annotated[Path, typer.Argument(help="Folder of the benchmark.")],
    benchmark: Annotated[str, typer.Option(help="spider, bird, geoquery or jsonl")],
) -> None:
    """Says what of a benchmark is there and what is missing."""
    from spftsql.evaluation.data_check import check_data, render_findings

    findings = check_data(root, benchmark)
    _out.print(render_findings(findings), markup=False, soft_wrap=True)
    if any(finding.state in ("missing", "partial") for finding in findings):
        raise typer.Exit(1)


@templates_app.command("extract")
def templates_extract(
    benchmark: Annotated[str, typer.Option(help="spider, bird, geoquery or jsonl")],
    root: Annotated[Path, typer.Option(help="Folder of the benchmark, as it is published.")],
    out: Annotated[Path, typer.Option(help="The file to write: one template per line, as JSON.")],
    split: Annotated[str | None, typer.Option(help="Which questions; default: train.")] = None,
) -> None:
    """Takes the structures out of labelled SQL; nothing of a database is in the file."""
    from spftsql.synthesis.command import extract_templates

    extract_templates(benchmark, root, split, out, _out)


@templates_app.command("show")
def templates_show(
    source: Annotated[str, typer.Argument(metavar="FILE|library", help="A file of templates, or the built-in ones.")],
    hardness: Annotated[str | None, typer.Option(help="easy, medium, hard or extra")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Lines of the table.")] = 30,
) -> None:
    """Shows templates, most frequent first."""
    from spftsql.synthesis.command import show_templates

    show_templates(source, hardness, limit, _out)


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
    from spftsql import scaling

    if watch:
        if count is not None or maximum is None:
            raise UserError("--watch takes --max and no number: `spftsql scale verifiers --min 2 --max 32 --watch …`")
        scaling.watch_verifiers(minimum, maximum, address)
    elif count is None:
        raise UserError("say how many: `spftsql scale verifiers 8 --address http://HOST:8265`")
    else:
        scaling.scale_verifiers(count, address, not no_wait, timeout)


def _policy(name: str | None) -> Policy | None:
    if name is not None and name not in POLICIES:
        raise UserError(f"unknown policy {name}; use {', '.join(POLICIES)}")
    return name


def main() -> None:
    """The console script: errors that a user can mend are one line, with an exit code."""
    try:
        app()
    except (UserError, Fault) as error:
        Console(stderr=True, highlight=False).print(f"spftsql: {error}", markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)

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
keys_app = typer.Typer(help="Keys of the endpoint.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")

jobs_app = typer.Typer(help="Jobs on a Ray cluster.", no_args_is_help=True)
app.add_typer(jobs_app, name="jobs")

cluster_app = typer.Typer(help="A Ray cluster on this machine.", no_args_is_help=True)
app.add_typer(cluster_app, name="cluster")

Address = Annotated[str, typer.Option(help="The cluster's dashboard and job server, as http://HOST:8265.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="A job's id, as `spftsql jobs list` shows it.")]
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
    _out.print(rich_table(result, f"{config.name}: execution accuracy on the {result.exam} questions"))
    for line in filter(None, [result.about, *(decision.sentence() for decision in result.decisions)]):
        _out.print(line, soft_wrap=True)
    _out.print(f"The run is in {config.run_dir / config.name}; the gate serves {result.served}.", soft_wrap=True)


@app.command()
def plan(
    recipe: Annotated[str | None, typer.Argument(help="A recipe or a YAML file; else that of --actual.")] = None,
    overrides: Overrides = None,
    gpus: Annotated[str | None, typer.Option(help="What it would run on, as 8xH100; without it: counts only.")] = None,
    price: Annotated[float | None, typer.Option(help="What one GPU costs an hour.")] = None,
    actual: Annotated[Path | None, typer.Option(metavar="RUN", help="A run: planned beside what it took.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Tokens, statements, GPU-hours, disk and money of every stage, before anything is started."""
    from spftsql.plan_report import run_plan

    run_plan(recipe, overrides or [], gpus, price, actual, as_json, _out)


@app.command()
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
    from spftsql.job_command import amounts, stage_arguments
    from spftsql.submission import chosen_stage
    from spftsql.submission import submit as submit_job

    arguments = stage_arguments({"input": source, "output": target, "mode": mode, "model": model})
    chosen = chosen_stage(stage, arguments)
    options = (chosen, arguments, amounts("--driver", driver or []))
    raise typer.Exit(submit_job(recipe, overrides or [], address, follow, submission_id, None, *options))


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
    from spftsql import cluster_command
    from spftsql.job_command import amounts

    cluster_command.cluster_up(local, nodes, cpus, amounts("--resources", resources or []), _out)


@cluster_app.command("status")
def cluster_status() -> None:
    """Shows the cluster on this machine."""
    from spftsql import cluster_command

    cluster_command.cluster_status(_out)


@cluster_app.command("down")
def cluster_down() -> None:
    """Ends the cluster on this machine."""
    from spftsql import cluster_command

    cluster_command.cluster_down(_out)


@jobs_app.command("list")
def jobs_list(address: Address) -> None:
    """The jobs of a cluster, latest first."""
    from spftsql.job_command import list_jobs, print_to

    print_to(_out, list_jobs(address))


@jobs_app.command("logs")
def jobs_logs(
    job: JobId,
    address: Address,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job ends; its exit code is taken.")] = False,
) -> None:
    """The output of a job."""
    from spftsql.job_command import show_logs

    raise typer.Exit(show_logs(job, address, follow))


@jobs_app.command("status")
def jobs_status(job: JobId, address: Address) -> None:
    """Where a job stands."""
    from spftsql.job_command import job_status, print_to

    print_to(_out, job_status(job, address))


@jobs_app.command("stop")
def jobs_stop(job: JobId, address: Address) -> None:
    """Ends a job; what its run has finished stays, and the same recipe submitted again goes on."""
    from spftsql.job_command import print_to, stop_job

    print_to(_out, stop_job(job, address))


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


@app.command(name="evaluate")
def evaluate_model(
    model: Annotated[
        str, typer.Argument(help="A run (its served model), a model directory, or with --endpoint its name there.")
    ],
    benchmark: Annotated[
        str,
        typer.Option(
            help="spider, spider-test, spider-syn, spider-realistic, spider-dk, bird, bird-mini, geoquery, jsonl"
        ),
    ],
    root: Annotated[Path, typer.Option(help="Folder of the benchmark, as it is published.")],
    split: Annotated[str | None, typer.Option(help="Which questions; default: those that the name stands for.")] = None,
    candidate: Annotated[str | None, typer.Option(help="Of a run: this one instead of the served model.")] = None,
    n: Annotated[int, typer.Option(min=1, max=256, help="Samples per question to vote over; 1: greedy only.")] = 8,
    temperature: Annotated[float, typer.Option(min=0.01, help="Of the samples; greedy answers have 0.")] = 0.8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one answer.")] = 256,
    schema_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a schema in the prompt; default: as trained.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="So many questions, drawn by the seed.")] = None,
    seed: Annotated[int, typer.Option(help="Of samples and of --limit.")] = 0,
    engine: Annotated[str | None, typer.Option(help="vllm or transformers; default: what fits the machine.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="An OpenAI-compatible address, as http://HOST/v1.")] = None,
    key_env: Annotated[str | None, typer.Option(help="Environment variable that holds its key.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=512, help="Requests at a time to the endpoint.")] = 8,
    folder: Annotated[
        Path | None, typer.Option("--answers", help="Folder that keeps the answers; default: in evaluations/.")
    ] = None,
    databases: Annotated[
        Path | None, typer.Option(help="Folder of database files, or a YAML file of name: file or URL.")
    ] = None,
    db: Databases = None,
    policy: Annotated[str | None, typer.Option(help="spider, bird or strict; default: the benchmark's own.")] = None,
    keep_distinct: Annotated[bool, typer.Option("--keep-distinct", help="Do not ignore DISTINCT (spider).")] = False,
    suite: Annotated[int, typer.Option(min=0, help="Test-suite accuracy: up to so many instances per gold.")] = 0,
    metrics: Annotated[str, typer.Option(help="Besides ex, and ts with --suite: as `spftsql score` has them.")] = "ex",
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs for ves and r-ves.")] = 100,
    workers: Annotated[int, typer.Option(min=1, help="Processes that execute SQL.")] = 2,
    timeout: Annotated[float, typer.Option(help="Seconds for one statement.")] = 30,
    max_rows: Annotated[int, typer.Option(min=1, help="Rows of one result.")] = 1_000_000,
    memory_mb: Annotated[int, typer.Option(min=64, help="Memory of one process that executes SQL.")] = 2048,
    out: Annotated[Path | None, typer.Option("--json", help="Write everything here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables here as Markdown.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write one page with all questions and answers here.")] = None,
) -> None:
    """Asks a model a benchmark's questions and scores the answers: greedy, and the majority of samples."""
    from spftsql.evaluation.evaluate_command import ModelOptions, run_evaluate
    from spftsql.evaluation.evaluating import EvaluateOptions
    from spftsql.evaluation.scoring import ScoreOptions, limits

    scoring = ScoreOptions(
        benchmark=benchmark,
        root=root,
        predictions=Path(),
        split=split,
        databases=databases,
        named=tuple(db or ()),
        policy=_policy(policy),
        keep_distinct=keep_distinct,
        suite=suite,
        metrics=tuple(name.strip() for name in metrics.split(",") if name.strip()),
        repeats=repeats,
        workers=workers,
        limits=limits(timeout, max_rows, memory_mb),
    )
    chosen = ModelOptions(model, candidate, engine, endpoint, key_env, concurrency, schema_tokens)
    options = EvaluateOptions(benchmark, folder or Path(), scoring, n, temperature, max_tokens, seed, limit)
    run_evaluate(chosen, options, _out, out, markdown, html)


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
    db: Annotated[
        list[str] | None,
        typer.Option("--db", help="A database as NAME=FILE, NAME=sqlite:///…, duckdb:///… or postgresql://…"),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to bind; beyond loopback there must be keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 picks a free one.")] = 8000,
    engine: Annotated[str, typer.Option(help="vllm or transformers")] = "vllm",
    keys: Annotated[Path | None, typer.Option(help="The file that `spftsql keys` writes.")] = None,
    overrides: Overrides = None,
) -> None:
    """Serves a model: /v1/sql, OpenAI's /v1/chat/completions and /v1/completions, /mcp, /metrics. Ends with Ctrl-C."""
    from spftsql.endpoint import serve_forever
    from spftsql.serving import serving_plan

    extra = [f"serve.keys={keys}"] if keys else []
    serve_forever(serving_plan(model, db or [], host, port, engine, [*extra, *(overrides or [])]))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, as RUN_DIR/NAME; it need not be done.")],
    out: Annotated[Path | None, typer.Option(help="The page to write; default: report.html in the run.")] = None,
) -> None:
    """Writes one self-contained HTML page about a run."""
    from spftsql.reporting.report_page import run_report

    _out.print(f"The report is in {run_report(run, out)}.", markup=False, soft_wrap=True)


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
def synthesize(
    recipe: Recipe,
    count: Annotated[int, typer.Option(min=1, help="Statements wanted.")] = 1000,
    out: Annotated[Path | None, typer.Option(help="File to write: .jsonl, .csv or .parquet.")] = None,
    questions: Annotated[bool, typer.Option("--questions", help="A question for each, by the recipe's model.")] = False,
    overrides: Overrides = None,
) -> None:
    """SQL over a recipe's databases, executed and deduplicated; with --questions, pairs."""
    from spftsql.config import resolve
    from spftsql.selfplay.synthesize_command import run_synthesize
    from spftsql.session import end_session

    config = resolve(recipe, ["serve.port=0", *(overrides or [])])
    try:
        run_synthesize(config, count, out, questions, _out)
    finally:
        if config.execution == "ray":
            end_session()


@app.command()
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

    show_pairs(run, where, columns, limit, as_json, as_csv, _out)


@app.command()
def finetune(
    out: Annotated[Path, typer.Option(help="The model directory to write.")],
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe, for its settings, and for its labels where there is no --data.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Pairs, as JSON lines or Parquet: question and sql, or prompt and chosen.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model to train: a directory or a Hub name.")] = None,
    mode: Annotated[str, typer.Option(help="sft, or with `rejected` answers spin, dpo, spft-a, spft-b.")] = "sft",
    reference: Annotated[str | None, typer.Option(help="Frozen model of the pair modes; default: the model.")] = None,
    db: Databases = None,
    overrides: Overrides = None,
) -> None:
    """One training alone: pairs in, a model directory out. The same command resumes."""
    import typing

    from spftsql.progress import Reporter
    from spftsql.records import Mode
    from spftsql.training.command import Finetuning, modes
    from spftsql.training.command import finetune as train

    chosen = modes(typing.get_args(Mode), mode)
    wanted = Finetuning(recipe, data, model, reference, chosen, out, tuple(db or ()), tuple(overrides or ()))
    train(wanted, Reporter())


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A run directory (its promoted model) or a model directory.")],
    merge: Annotated[bool, typer.Option("--merge", help="Merge an adapter into its base.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; default: exported or exported-merged in it.")
    ] = None,
    push: Annotated[str | None, typer.Option(help="Upload to the Hub as ORG/NAME; the token is in HF_TOKEN.")] = None,
) -> None:
    """Writes a trained model as a directory of its own, with its card, and uploads it where that is asked for."""
    from spftsql.progress import Reporter
    from spftsql.training.export import export as export_model

    export_model(model, merge, out, push, Reporter(_out).say)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="A question in plain words.")],
    database: Annotated[str | None, typer.Option(help="Its database; default: the only one served.")] = None,
    url: Annotated[str, typer.Option(help="The endpoint.")] = "http://127.0.0.1:8000",
    n: Annotated[int, typer.Option(help="Samples to vote over, 1 to 16.")] = 1,
    evidence: Annotated[str, typer.Option(help="A hint that comes with the question.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Asks a served model; prints SQL, verdict and rows. The key is in SPFTSQL_API_KEY. Exit 1: it did not run."""
    from spftsql.client import ask as ask_endpoint
    from spftsql.client import ask_live, render_answer

    if as_json:
        answer = ask_endpoint(url, database, question, n=n, evidence=evidence)
        print(json.dumps(answer))
    else:
        answer = ask_live(url, database, question, _out, n=n, evidence=evidence)
        _out.print(render_answer(answer))
    if answer["verdict"]["status"] not in ("ran", "truncated"):
        raise typer.Exit(1)


@app.command()
def chat(
    database: Annotated[str | None, typer.Option(help="The database to begin with; default: the first.")] = None,
    url: Annotated[str, typer.Option(help="The endpoint.")] = "http://127.0.0.1:8000",
    n: Annotated[int, typer.Option(min=1, max=16, help="Samples to vote over.")] = 1,
) -> None:
    """A conversation with a served model: questions, their SQL and rows, and questions that follow from them."""
    from spftsql.client import run_chat

    run_chat(url, database, n, _out)


KeysFile = Annotated[Path, typer.Option("--file", help="The file of keys.")]
_KEYS = Path("keys.json")


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="Who or what the key is for.")],
    file: KeysFile = _KEYS,
    db: Annotated[
        list[str] | None,
        typer.Option("--db", help="What it may read: DATABASE, DATABASE.TABLE or DATABASE.TABLE.COLUMN; default: all."),
    ] = None,
    scope: Annotated[
        list[str] | None, typer.Option(help="ask, query, raw, feedback, metrics; default: ask, query, feedback.")
    ] = None,
    rate: Annotated[int | None, typer.Option(help="Requests a minute; default: as many as it likes.")] = None,
) -> None:
    """Makes a key and prints it, this once; the file keeps its hash."""
    from spftsql.keys import DEFAULT_SCOPES, create_key

    key, entry = create_key(file, name, scope or DEFAULT_SCOPES, db or (), rate)
    Console(stderr=True, highlight=False).print(f"Key {entry.id} for {name}, kept as a hash in {file}:", markup=False)
    print(key)


@keys_app.command("revoke")
def keys_revoke(
    key: Annotated[str, typer.Argument(help="Its name or id.")],
    file: KeysFile = _KEYS,
) -> None:
    """Revokes a key; a running endpoint refuses it within a second."""
    from spftsql.keys import revoke_key

    entry = revoke_key(file, key)
    _out.print(f"Key {entry.id} ({entry.name}) is revoked.", markup=False)


@keys_app.command("list")
def keys_list(file: KeysFile = _KEYS) -> None:
    """Shows who has keys and what they may do."""
    from spftsql.keys import keys_table, read_keys

    _out.print(keys_table(read_keys(file)))


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

"""SQL judged by execution: score, evaluate, verify; and the schema that it is about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from spftsql.commands.options import Databases, policy_named, terminal
from spftsql.errors import Fault


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
        policy=policy_named(policy),
        keep_distinct=keep_distinct,
        suite=suite,
        metrics=tuple(name.strip() for name in metrics.split(",") if name.strip()),
        repeats=repeats,
        against=against,
        workers=workers,
        limits=limits(timeout, max_rows, memory_mb),
        cache=not no_cache,
    )
    run_score(options, terminal, out, markdown, html)


def evaluate(
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
        policy=policy_named(policy),
        keep_distinct=keep_distinct,
        suite=suite,
        metrics=tuple(name.strip() for name in metrics.split(",") if name.strip()),
        repeats=repeats,
        workers=workers,
        limits=limits(timeout, max_rows, memory_mb),
    )
    chosen = ModelOptions(model, candidate, engine, endpoint, key_env, concurrency, schema_tokens)
    options = EvaluateOptions(benchmark, folder or Path(), scoring, n, temperature, max_tokens, seed, limit)
    run_evaluate(chosen, options, terminal, out, markdown, html)


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

    chosen = policy_named(policy) or "strict"
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
        terminal.print(f"{verdict.status}{reason}, {verdict.row_count} rows, {verdict.elapsed_ms:.1f} ms", markup=False)
    if verdict.fault:
        raise Fault(verdict.fault)
    if verdict.status == "error" and verdict.reason.startswith("refused"):
        raise typer.Exit(3)
    raise typer.Exit(0 if verdict.status in ("ran", "equal") else 1)


def schema(
    database: Annotated[str, typer.Argument(help="A database: a file, or a URL: sqlite, duckdb or postgresql.")],
) -> None:
    """The schema text as the model sees it."""
    from spftsql.databases.files import database_location
    from spftsql.databases.reflection import reflect
    from spftsql.databases.schema_text import schema_text

    print(schema_text(reflect("database", database_location(database))))

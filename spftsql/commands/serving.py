"""The endpoint: serve, ask, chat, keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from spftsql.commands.options import Overrides, terminal

keys_app = typer.Typer(help="Keys of the endpoint.", no_args_is_help=True)

KeysFile = Annotated[Path, typer.Option("--file", help="The file of keys.")]
_KEYS = Path("keys.json")


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
    from spftsql.serving.endpoint import serve_forever
    from spftsql.serving.plan import serving_plan

    extra = [f"serve.keys={keys}"] if keys else []
    serve_forever(serving_plan(model, db or [], host, port, engine, [*extra, *(overrides or [])]))


def ask(
    question: Annotated[str, typer.Argument(help="A question in plain words.")],
    database: Annotated[str | None, typer.Option(help="Its database; default: the only one served.")] = None,
    url: Annotated[str, typer.Option(help="The endpoint.")] = "http://127.0.0.1:8000",
    n: Annotated[int, typer.Option(help="Samples to vote over, 1 to 16.")] = 1,
    evidence: Annotated[str, typer.Option(help="A hint that comes with the question.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Asks a served model; prints SQL, verdict and rows. The key is in SPFTSQL_API_KEY. Exit 1: it did not run."""
    from spftsql.serving.client import ask as ask_endpoint
    from spftsql.serving.client import ask_live, render_answer

    if as_json:
        answer = ask_endpoint(url, database, question, n=n, evidence=evidence)
        print(json.dumps(answer))
    else:
        answer = ask_live(url, database, question, terminal, n=n, evidence=evidence)
        terminal.print(render_answer(answer))
    if answer["verdict"]["status"] not in ("ran", "truncated"):
        raise typer.Exit(1)


def chat(
    database: Annotated[str | None, typer.Option(help="The database to begin with; default: the first.")] = None,
    url: Annotated[str, typer.Option(help="The endpoint.")] = "http://127.0.0.1:8000",
    n: Annotated[int, typer.Option(min=1, max=16, help="Samples to vote over.")] = 1,
) -> None:
    """A conversation with a served model: questions, their SQL and rows, and questions that follow from them."""
    from spftsql.serving.client import run_chat

    run_chat(url, database, n, terminal)


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
    from spftsql.serving.keys import DEFAULT_SCOPES, create_key

    key, entry = create_key(file, name, scope or DEFAULT_SCOPES, db or (), rate)
    Console(stderr=True, highlight=False).print(f"Key {entry.id} for {name}, kept as a hash in {file}:", markup=False)
    print(key)


@keys_app.command("revoke")
def keys_revoke(
    key: Annotated[str, typer.Argument(help="Its name or id.")],
    file: KeysFile = _KEYS,
) -> None:
    """Revokes a key; a running endpoint refuses it within a second."""
    from spftsql.serving.keys import revoke_key

    entry = revoke_key(file, key)
    terminal.print(f"Key {entry.id} ({entry.name}) is revoked.", markup=False)


@keys_app.command("list")
def keys_list(file: KeysFile = _KEYS) -> None:
    """Shows who has keys and what they may do."""
    from spftsql.serving.keys import keys_table, read_keys

    terminal.print(keys_table(read_keys(file)))

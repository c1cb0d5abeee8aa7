"""`spftsql demo`: the loop on the shop database, then one question over HTTP to the model that the gate serves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from spftsql.config import resolve
from spftsql.demo.database import DATABASE_NAME
from spftsql.demo.questions import load_labels, sample_question
from spftsql.progress import Reporter
from spftsql.selfplay.run import run
from spftsql.selfplay.table import rich_table


def run_demo(overrides: Sequence[str], out: Console) -> None:
    """Runs (or resumes) the demo and prints its table, a question, and the endpoint's answer with its verdict."""
    from spftsql.endpoint import ask, render_answer, start_endpoint
    from spftsql.session import end_session, ensure_session

    begin = time.monotonic()
    config = resolve("demo", ["serve.port=0", *overrides])
    reporter = Reporter()
    reporter.say("The loop on the shop database: labels, VBI-FT, self-play, gate. Run it again and it resumes.")
    try:
        result = run(config, reporter)
        out.print(rich_table(result, "Execution accuracy on held-out questions"))
        ensure_session(config)
        with reporter.task("endpoint"):
            url = start_endpoint(Path(result.served_path), config.name, result.databases, config)
        question = sample_question(load_labels(Path(result.databases[DATABASE_NAME]), config.seed)).question
        answer = ask(url, DATABASE_NAME, question)
        out.print(f"\nThe gate serves [bold]{result.served}[/bold] at {url}. Asked: [bold]{question}[/bold]")
        out.print(render_answer(answer))
    finally:
        end_session()
    out.print(f"{time.monotonic() - begin:.0f} s in all. Everything is in {config.run_dir / config.name}.")

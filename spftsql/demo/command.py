"""`spftsql demo`: the loop on the shop database, then one question over HTTP to the model that the gate serves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from spftsql.config import Config
from spftsql.demo.database import DATABASE_NAME
from spftsql.demo.questions import load_labels, sample_question
from spftsql.progress import Reporter
from spftsql.recipes import resolve
from spftsql.selfplay.candidates import Candidate
from spftsql.selfplay.run import run
from spftsql.selfplay.table import read_outcomes, rich_table


def run_demo(overrides: Sequence[str], out: Console) -> None:
    """Runs (or resumes) the demo and prints its table, a question, and the endpoint's answer with its verdict."""
    from spftsql.cluster.session import end_session, ensure_session
    from spftsql.serving.client import ask, render_answer

    begin = time.monotonic()
    config = resolve("demo", ["serve.port=0", *overrides])
    folder = config.run_dir / config.name
    reporter = Reporter()
    reporter.say("The loop on the shop database: labels, VBI-FT, self-play, gate. Run it again and it resumes.")
    endpoint = _Endpoint(config)
    try:
        result = run(config, reporter, expect=endpoint.warm)
        out.print(rich_table(result, "Execution accuracy on held-out questions"))
        for line in result.sentences:
            out.print(line, markup=False, soft_wrap=True)
        ensure_session(config)
        with reporter.task("endpoint"):
            url = endpoint.serve(Path(result.served_path))
        right = [id_ for id_, is_right in read_outcomes(folder).right[result.served].items() if is_right]
        question = sample_question(load_labels(Path(result.databases[DATABASE_NAME])), right).question
        answer = ask(url, DATABASE_NAME, question)
        among = f", of the {len(right)} test questions that it answers right" if right else ""
        asked = f"Asked{among}: [bold]{question}[/bold]"
        out.print(f"\nThe gate serves [bold]{result.served}[/bold] at {url}. {asked}", soft_wrap=True)
        out.print(render_answer(answer))
    finally:
        end_session()
    out.print(f"{time.monotonic() - begin:.0f} s in all. Everything is in {folder}.", soft_wrap=True)


class _Endpoint:
    """The demo's endpoint; started for the likely winner while the last candidates are still being examined."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._threads = ThreadPoolExecutor(1)
        self._warm: tuple[Path, Future[str]] | None = None

    def warm(self, candidate: Candidate) -> None:
        """Starts with `candidate` in the background, where Ray runs anyway."""
        from spftsql.cluster.session import ensure_session

        if self._config.execution == "ray":
            ensure_session(self._config)
            path = Path(candidate.path)
            self._warm = path, self._threads.submit(self._start, path)

    def serve(self, model: Path) -> str:
        """The URL of an endpoint for `model`: the warm one where the guess was right."""
        if self._warm is not None:
            path, url = self._warm
            url.result()
            if path == model:
                return url.result()
        return self._start(model)

    def _start(self, model: Path) -> str:
        from spftsql.serving.endpoint import start_endpoint

        file = self._config.run_dir.resolve() / self._config.name / f"{DATABASE_NAME}.sqlite"
        return start_endpoint(model, self._config.name, {DATABASE_NAME: str(file)}, self._config)

"""`spftsql evaluate`: asks a model, scores its answers, says what was found, and writes it down."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from spftsql.errors import Fault, UserError
from spftsql.evaluation.answers import Answerer
from spftsql.evaluation.command import check_outputs, write_text
from spftsql.evaluation.evaluate_report import evaluation_sections, evaluation_title
from spftsql.evaluation.evaluating import EvaluateOptions, Evaluation, evaluate, read_edition
from spftsql.evaluation.score_report import sections_as_markdown, show_sections
from spftsql.progress import Reporter


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and where it is: on this machine, or behind `endpoint` (then `model` is its name there)."""

    model: str
    candidate: str | None = None
    engine: str | None = None
    endpoint: str | None = None
    key_variable: str | None = None
    concurrency: int = 8
    schema_tokens: int | None = None


def run_evaluate(
    model: ModelOptions,
    options: EvaluateOptions,
    console: Console,
    json_file: Path | None = None,
    markdown_file: Path | None = None,
    html_file: Path | None = None,
) -> Evaluation:
    """Evaluates, prints the result on `console` and writes the files that are wanted.

    Without a folder in `options` (its path is empty) the answers are kept in `evaluations/`. Raises `UserError` and
    `Fault` as `evaluate` does, the former before anything is asked when a file could not be written.
    """
    check_outputs((("--json", json_file), ("--markdown", markdown_file), ("--html", html_file)))
    split = read_edition(options.edition, options.score.root, options.score.split).split
    answerer = open_answerer(model)
    if options.folder == Path():
        name = re.sub(r"[^\w.-]+", "-", f"{options.edition}-{split}-{answerer.name}").strip("-")
        options = replace(options, folder=Path("evaluations") / name)
    options = replace(options, score=replace(options.score, samples=html_file is not None))
    try:
        found = evaluate(options, answerer, Reporter().task)
    finally:
        answerer.close()
    if found.faults:
        index, fault = [*found.greedy.faults, *(found.voted.faults if found.voted else ())][0]
        raise Fault(
            f"{found.faults} answers could not be verified (question {index}: {fault}); the answers are kept in "
            f"{options.folder}, run again"
        )
    sections = evaluation_sections(found)
    show_sections(sections, console)
    console.print(f"The answers are in {options.folder}.", markup=False, soft_wrap=True)
    if json_file is not None:
        write_text(json_file, found.to_json())
    if markdown_file is not None:
        write_text(markdown_file, sections_as_markdown(evaluation_title(found), sections))
    if html_file is not None:
        from spftsql.evaluation.score_page import results_page

        results = {"greedy": found.greedy} | ({"voted": found.voted} if found.voted else {})
        write_text(html_file, results_page(evaluation_title(found), sections, results))
    return found


def open_answerer(options: ModelOptions) -> Answerer:
    """The model that the options name. Raises `UserError` where there is none, or options do not go together."""
    if options.endpoint is None:
        from spftsql.evaluation.local_model import LocalModel, choose_model

        if options.key_variable is not None:
            raise UserError("--key-env goes with --endpoint")
        choice = choose_model(options.model, options.candidate, options.engine)
        if options.schema_tokens is not None:
            prompt = choice.config.prompt.model_copy(update={"max_schema_tokens": options.schema_tokens})
            choice = replace(choice, config=choice.config.model_copy(update={"prompt": prompt}))
        return LocalModel(choice)
    from spftsql.config import PromptConfig
    from spftsql.evaluation.endpoint_model import EndpointModel, key_of

    if options.candidate or options.engine:
        raise UserError("--candidate and --engine are for models on this machine, not for --endpoint")
    prompt = PromptConfig() if options.schema_tokens is None else PromptConfig(max_schema_tokens=options.schema_tokens)
    key = key_of(options.key_variable)
    return EndpointModel(options.endpoint, options.model, key, prompt, options.concurrency)

"""One stage alone: synthesize, finetune, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spftsql.commands.options import Databases, Overrides, Recipe, terminal


def synthesize(
    recipe: Recipe,
    count: Annotated[int, typer.Option(min=1, help="Statements wanted.")] = 1000,
    out: Annotated[Path | None, typer.Option(help="File to write: .jsonl, .csv or .parquet.")] = None,
    questions: Annotated[bool, typer.Option("--questions", help="A question for each, by the recipe's model.")] = False,
    overrides: Overrides = None,
) -> None:
    """SQL over a recipe's databases, executed and deduplicated; with --questions, pairs."""
    from spftsql.cluster.session import end_session
    from spftsql.recipes import resolve
    from spftsql.selfplay.synthesize_command import run_synthesize

    config = resolve(recipe, ["serve.port=0", *(overrides or [])])
    try:
        run_synthesize(config, count, out, questions, terminal)
    finally:
        if config.execution == "ray":
            end_session()


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

    export_model(model, merge, out, push, Reporter(terminal).say)

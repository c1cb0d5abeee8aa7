"""What is there, what is set, what is missing: doctor, config, data, templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from spftsql.commands.options import Overrides, Recipe, terminal

config_app = typer.Typer(help="Configuration.", no_args_is_help=True)
data_app = typer.Typer(help="Benchmark data.", no_args_is_help=True)
templates_app = typer.Typer(help="SQL templates: structures without tables, columns and values.", no_args_is_help=True)


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
        terminal.print(render(checks))
    if failed(checks):
        raise typer.Exit(1)


@config_app.command("show")
def config_show(recipe: Recipe, overrides: Overrides = None) -> None:
    """Prints the resolved configuration of a recipe."""
    import yaml

    from spftsql.recipes import resolve

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
    terminal.print(render_findings(findings), markup=False, soft_wrap=True)
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

    extract_templates(benchmark, root, split, out, terminal)


@templates_app.command("show")
def templates_show(
    source: Annotated[str, typer.Argument(metavar="FILE|library", help="A file of templates, or the built-in ones.")],
    hardness: Annotated[str | None, typer.Option(help="easy, medium, hard or extra")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Lines of the table.")] = 30,
) -> None:
    """Shows templates, most frequent first."""
    from spftsql.synthesis.command import show_templates

    show_templates(source, hardness, limit, terminal)

"""Options that several commands have, and where they print."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from spftsql.errors import UserError
from spftsql.records import POLICIES, Policy

Address = Annotated[str, typer.Option(help="The cluster's dashboard and job server, as http://HOST:8265.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="A job's id, as `spftsql jobs list` shows it.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a configuration key: a.b=value.")]
Recipe = Annotated[str, typer.Argument(help="Name of a recipe that comes with the package, or a YAML file.")]
Databases = Annotated[list[str] | None, typer.Option("--db", help="A database as NAME=FILE or NAME=sqlite:///FILE.")]

terminal = Console(highlight=False)


def policy_named(name: str | None) -> Policy | None:
    """The policy of that name; None for none. Raises `UserError` for an unknown one."""
    if name is not None and name not in POLICIES:
        raise UserError(f"unknown policy {name}; use {', '.join(POLICIES)}")
    return name

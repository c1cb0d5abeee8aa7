"""The `spftsql` command. Every heavy import is inside the command that needs it."""

from __future__ import annotations

import os
import sys

import typer
from rich.console import Console

from spftsql.commands import cluster, inspection, loop, scoring, serving, stages
from spftsql.errors import Fault, UserError

# Looking for plugins of pydantic reads the metadata of every package that is installed; none is wanted here.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

app = typer.Typer(
    name="spftsql",
    help="Turns your databases and an open-weights model into a better Text-to-SQL model, and serves it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (
    loop.demo,
    loop.run,
    loop.plan,
    loop.submit,
    loop.status,
    loop.report,
    loop.pairs,
    stages.synthesize,
    stages.finetune,
    stages.export,
    serving.serve,
    serving.ask,
    serving.chat,
    scoring.score,
    scoring.evaluate,
    scoring.verify,
    scoring.schema,
    inspection.doctor,
):
    app.command()(command)
for name, group in {
    "keys": serving.keys_app,
    "jobs": cluster.jobs_app,
    "cluster": cluster.cluster_app,
    "scale": cluster.scale_app,
    "templates": inspection.templates_app,
    "config": inspection.config_app,
    "data": inspection.data_app,
}.items():
    app.add_typer(group, name=name)


def main() -> None:
    """The console script: errors that a user can mend are one line, with an exit code."""
    try:
        app()
    except (UserError, Fault) as error:
        Console(stderr=True, highlight=False).print(f"spftsql: {error}", markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)

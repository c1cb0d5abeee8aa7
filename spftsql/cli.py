"""The `spftsql` command: where each command is. One is imported when it is asked for, with what it needs."""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from spftsql.errors import Fault, UserError

# Looking for plugins of pydantic reads the metadata of every package that is installed; none is wanted here.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

_GARBAGE = 20_000  # new objects between two looks for garbage: imports leave none, and rows neither
_COMMANDS = {
    "demo": "loop.demo",
    "run": "loop.run",
    "compare": "loop.compare",
    "plan": "loop.plan",
    "submit": "loop.submit",
    "status": "loop.status",
    "report": "loop.report",
    "pairs": "loop.pairs",
    "synthesize": "stages.synthesize",
    "finetune": "stages.finetune",
    "export": "stages.export",
    "serve": "serving.serve",
    "ask": "serving.ask",
    "chat": "serving.chat",
    "score": "scoring.score",
    "evaluate": "scoring.evaluate",
    "verify": "scoring.verify",
    "schema": "scoring.schema",
    "doctor": "inspection.doctor",
    "keys": "serving.keys_app",
    "jobs": "cluster.jobs_app",
    "cluster": "cluster.cluster_app",
    "scale": "cluster.scale_app",
    "templates": "inspection.templates_app",
    "config": "inspection.config_app",
    "data": "inspection.data_app",
}


class _Commands(TyperGroup):
    """Builds a command, or a group of them, when it is named; all only for the help."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in _COMMANDS:
            return self._built(cmd_name)
        for name in _COMMANDS:  # for what may have been meant
            self._built(name)
        return None

    def _built(self, name: str) -> Any:
        if name not in self.commands:
            module, attribute = _COMMANDS[name].split(".")
            found = getattr(import_module(f"spftsql.commands.{module}"), attribute)
            if isinstance(found, typer.Typer):
                self.commands[name] = typer.main.get_group(found)
            else:
                alone = typer.Typer(add_completion=False)
                alone.command(name)(found)
                self.commands[name] = typer.main.get_command(alone)
            self.commands[name].name = name
        return self.commands[name]


app = typer.Typer(cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)


@app.callback()
def spftsql() -> None:
    """Turns your databases and an open-weights model into a better Text-to-SQL model, and serves it."""


def main() -> None:
    """The console script: errors that a user can mend are one line, with an exit code."""
    gc.freeze()
    gc.set_threshold(_GARBAGE)
    try:
        app()
    except (UserError, Fault) as error:
        Console(stderr=True, highlight=False).print(f"spftsql: {error}", markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)

"""The whole loop of a recipe, as a job on a Ray cluster.

`spftsql submit RECIPE --address URL` uploads the code and starts this file with the resolved recipe in the
environment. By hand: `ray job submit --working-dir . -- python -m jobs.run RECIPE --set a.b=value`. The job joins
the cluster it runs on; the same job again resumes the run directory that the recipe names.
"""

from __future__ import annotations

import argparse
import os
import sys

import yaml
from rich.console import Console

from spftsql.config import Config, resolve, validate
from spftsql.errors import Fault, UserError
from spftsql.progress import Reporter
from spftsql.selfplay.run import run
from spftsql.selfplay.table import rich_table
from spftsql.session import end_session
from spftsql.submission import RECIPE_VARIABLE


def main() -> int:
    """Runs the loop and prints its table; returns the exit code."""
    parser = argparse.ArgumentParser(description="The whole loop of a recipe, on the cluster that runs this job.")
    parser.add_argument("recipe", nargs="?", help=f"name or file; default: the content of {RECIPE_VARIABLE}")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="a.b=value")
    arguments = parser.parse_args()
    try:
        config = _config(arguments.recipe, arguments.overrides)
        result = run(config, Reporter())
        Console().print(rich_table(result, f"{config.name}: execution accuracy on the test questions"))
    except (UserError, Fault) as error:
        print(f"spftsql: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        end_session()
    return 0


def _config(recipe: str | None, overrides: list[str]) -> Config:
    if recipe is not None:
        return resolve(recipe, ["cluster.address=auto", "serve.port=0", *overrides])
    if RECIPE_VARIABLE not in os.environ or overrides:
        raise UserError(f"give a recipe, or its content without overrides in {RECIPE_VARIABLE}")
    return validate(yaml.safe_load(os.environ[RECIPE_VARIABLE]), where="the submitted recipe")


if __name__ == "__main__":
    sys.exit(main())

"""What the files in `jobs/` share: the recipe, errors as one line and an exit code, the surroundings of one stage."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from spftsql.cluster.session import end_session
from spftsql.config import Config
from spftsql.errors import Fault, UserError
from spftsql.execution import Execution, open_execution
from spftsql.recipes import resolve, validate
from spftsql.submitting.submission import RECIPE_VARIABLE


def job_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the recipe; a job adds what is its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--recipe", help=f"name or file; default: the content of {RECIPE_VARIABLE}")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="a.b=value")
    return parser


def stage_parser(description: str) -> argparse.ArgumentParser:
    """A parser for a job that is one stage, from Parquet to Parquet."""
    parser = job_parser(description)
    parser.add_argument("--input", type=Path, required=True, help="Parquet file of the rows to work on")
    parser.add_argument("--output", type=Path, required=True, help="folder that is made; it appears when complete")
    return parser


def drive(parser: argparse.ArgumentParser, work: Callable[[Config, argparse.Namespace], None]) -> int:
    """Does `work` with the job's configuration and arguments; returns the exit code and leaves no session behind."""
    arguments = parser.parse_args()
    try:
        work(job_config(arguments.recipe, arguments.overrides), arguments)
    except (UserError, Fault) as error:
        print(f"spftsql: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        end_session()
    return 0


def job_config(recipe: str | None, overrides: list[str]) -> Config:
    """The recipe that was submitted, or one by name. Raises `UserError` when there is neither."""
    if recipe is not None:
        return resolve(recipe, ["cluster.address=auto", "serve.port=0", *overrides])
    if RECIPE_VARIABLE not in os.environ or overrides:
        raise UserError(f"give a --recipe, or its content without overrides in {RECIPE_VARIABLE}")
    return validate(yaml.safe_load(os.environ[RECIPE_VARIABLE]), where="the submitted recipe")


@contextmanager
def stage_alone(config: Config, source: Path, target: Path, *, databases: bool = False) -> Iterator[Execution]:
    """The execution of `config` for one stage, with the benchmark's `databases` where it needs them.

    Raises `UserError` when the input is missing or the output is there already.
    """
    if not source.exists():
        raise UserError(f"--input {source} does not exist on the cluster")
    if target.exists():
        raise UserError(f"--output {target} is there already: name another folder")
    with tempfile.TemporaryDirectory() as workspace:
        sources = {}
        if databases:
            from spftsql.databases.catalogue import open_catalogue
            from spftsql.evaluation.benchmarks import load_benchmark

            benchmark = load_benchmark(config.data, config.seed, Path(workspace))
            sources = {name: database.source for name, database in open_catalogue(benchmark.databases).items()}
        with open_execution(config, sources) as execution:
            yield execution

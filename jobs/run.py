"""The whole loop of a recipe, as a job on a Ray cluster.

`spftsql submit RECIPE --address URL` uploads the code and starts this file with the resolved recipe in the
environment. By hand: `ray job submit --working-dir . -- python -m jobs.run --recipe RECIPE --set a.b=value`. The job
joins the cluster it runs on; the same job again resumes the run directory that the recipe names.
"""

from __future__ import annotations

import sys
from argparse import Namespace

from rich.console import Console

from spftsql.config import Config
from spftsql.progress import Reporter
from spftsql.selfplay.run import run
from spftsql.selfplay.table import rich_table
from spftsql.submitting.driver import drive, job_parser


def work(config: Config, arguments: Namespace) -> None:
    """Runs the loop and prints its table."""
    result = run(config, Reporter())
    console = Console()
    console.print(rich_table(result, f"{config.name}: execution accuracy on the {result.exam} questions"))
    for line in result.sentences:
        console.print(line, markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(drive(job_parser("The whole loop of a recipe, on the cluster that runs this job."), work))

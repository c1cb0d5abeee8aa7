"""Generation alone, as a job: `GenerationRequest` rows in, `Sample` rows out; each row names its model.

`spftsql submit RECIPE --stage generate --input REQUESTS.parquet --output FOLDER --address URL`; paths are those of
the cluster.
"""

from __future__ import annotations

import sys
from argparse import Namespace

from spftsql.config import Config
from spftsql.progress import Reporter
from spftsql.submitting.driver import drive, stage_alone, stage_parser


def work(config: Config, arguments: Namespace) -> None:
    """Has the recipe's engines answer every request."""
    with (
        stage_alone(config, arguments.input, arguments.output) as execution,
        Reporter().task("generate") as progress,
    ):
        execution.generate(arguments.input, arguments.output, progress)


if __name__ == "__main__":
    sys.exit(drive(stage_parser("Samples of models for a file of requests."), work))

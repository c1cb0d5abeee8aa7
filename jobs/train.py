"""One training alone, as a job: `TrainRow` rows in, a model directory out; killed, the same job goes on.

`spftsql submit RECIPE --stage train --input ROWS.parquet --output FOLDER --mode spft-a --address URL`; paths are the
cluster's. The recipe says how (`training`) and how long (`sft`, or `selfplay.optimization` for the pair losses).
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import get_args

from spftsql.config import Config
from spftsql.errors import UserError
from spftsql.progress import Reporter
from spftsql.records import Mode
from spftsql.submitting.driver import drive, stage_alone, stage_parser
from spftsql.training.job import TrainJob


def work(config: Config, arguments: Namespace) -> None:
    """Trains `--model`, or the recipe's own, on the rows."""
    model = arguments.model or config.model.path
    if model is None:
        raise UserError("this recipe builds its model from scratch in the run: name a directory with --model")
    job = TrainJob(
        name=arguments.output.name,
        model=Path(model),
        data=arguments.input,
        output=arguments.output,
        mode=arguments.mode,
        optimization=config.sft if arguments.mode == "sft" else config.selfplay.optimization,
        seed=config.seed,
        reference=arguments.reference,
        lambda_=config.selfplay.lambda_,
        nll_weight=config.selfplay.nll_weight,
    )
    metrics = arguments.output.with_name(f"{arguments.output.name}.metrics.jsonl")
    with (
        stage_alone(config, arguments.input, arguments.output) as execution,
        Reporter().task(f"train {job.name}") as progress,
    ):
        (result,) = execution.train([job], metrics, progress)
    print(f"{result.steps} steps, loss {result.loss:.4f}: {result.output}")


if __name__ == "__main__":
    parser = stage_parser("One training on a file of rows.")
    parser.add_argument("--mode", choices=get_args(Mode), default="sft")
    parser.add_argument("--model", help="model directory to start from; default: model.path of the recipe")
    parser.add_argument("--reference", type=Path, help="the frozen model of the pair losses; default: --model")
    sys.exit(drive(parser, work))

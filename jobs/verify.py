"""Verification alone, as a job: `VerificationRequest` rows in, `Verdict` rows out, on the databases of the recipe.

`spftsql submit RECIPE --stage verify --input REQUESTS.parquet --output FOLDER --address URL`; paths are those of the
cluster.
A verdict with `fault` set says that we failed, not the SQL: send those rows again.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter

from spftsql.config import Config
from spftsql.errors import Fault
from spftsql.progress import Reporter
from spftsql.records import Verdict, read_records
from spftsql.submitting.driver import drive, stage_alone, stage_parser


def work(config: Config, arguments: Namespace) -> None:
    """Executes every statement in the sandbox and prints the verdicts' counts."""
    with (
        stage_alone(config, arguments.input, arguments.output, databases=True) as execution,
        Reporter().task("verify") as progress,
    ):
        execution.verify(arguments.input, arguments.output, progress)
    verdicts = read_records(arguments.output, Verdict)
    print(", ".join(f"{count} {status}" for status, count in Counter(v.status for v in verdicts).most_common()))
    faults = sum(bool(verdict.fault) for verdict in verdicts)
    if faults:
        raise Fault(f"{faults} of {len(verdicts)} statements could not be verified: send them again")


if __name__ == "__main__":
    sys.exit(drive(stage_parser("Verdicts on a file of SQL statements."), work))

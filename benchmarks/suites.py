"""`python -m benchmarks.suites [--k K] [--seed N] [--workers N] [--cache DIR]`: how many mutants suites kill.

For every database of Spider dev: the mutants of its golds, and the shares of them that give another result than their
gold on the original database alone, and on the original with K instances per gold. Mutants that mean the same as their
gold cannot be killed and are not known, so neither share can reach 1. The last line is one JSON object.

The data is found through SPFTSQL_DATA. Without `--cache` everything is built anew, in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import machine, markdown
from spftsql.evaluation.scoring import spider_text
from spftsql.suites import Suite, build_suite


def main() -> None:
    """Builds the suites and prints a table by database, one by kind of mutant, and the JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suites", description=__doc__)
    parser.add_argument("--k", type=int, default=8, help="instances per gold")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cache", type=Path, help="folder to keep the suites in")
    given = parser.parse_args()
    data = os.environ.get("SPFTSQL_DATA")
    if not data:
        raise SystemExit("benchmarks.suites: set SPFTSQL_DATA to the folder of the benchmark data")
    spider = Path(data) / "spider"
    golds: dict[str, dict[str, None]] = {}
    for row in json.loads((spider / "dev.json").read_text(encoding="utf-8")):
        golds.setdefault(row["db_id"], {})[spider_text(row["query"], keep_distinct=False)] = None
    print(machine(), flush=True)
    with nullcontext(given.cache) if given.cache else TemporaryDirectory() as folder:
        started = time.perf_counter()
        suites = [
            build_suite(
                db_id,
                spider / "database" / db_id / f"{db_id}.sqlite",
                list(statements),
                given.k,
                Path(folder),
                seed=given.seed,
                workers=given.workers,
            )
            for db_id, statements in golds.items()
        ]
        seconds = time.perf_counter() - started
        size = sum(path.stat().st_size for suite in suites for path in suite.instances[1:])
    _print_tables(suites)
    reports = [suite.report for suite in suites]
    mutants = sum(report.mutants for report in reports)
    figures = {
        "n_golds": sum(report.golds for report in reports),
        "n_mutants": mutants,
        "killed_original": sum(report.killed_original for report in reports) / mutants,
        "killed_suite": sum(report.killed_suite for report in reports) / mutants,
        "k": given.k,
        "seconds": seconds,
        "mib": size / 2**20,
    }
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


def _print_tables(suites: list[Suite]) -> None:
    rows = []
    counts: dict[str, Counter[str]] = {}
    for suite in suites:
        report = suite.report
        shares = [f"{killed / report.mutants:.3f}" for killed in (report.killed_original, report.killed_suite)]
        rows.append((suite.db_id, report.golds, report.alone, report.mutants, *shares, len(suite.instances) - 1))
        for kind, (total, first, later) in report.kinds.items():
            counts.setdefault(kind, Counter()).update(total=total, first=first, later=later)
    header = ("database", "golds", "without instance", "mutants", "killed by the original", "with suite", "instances")
    print(markdown(rows, header))
    kinds = sorted(counts.items(), key=lambda item: -item[1]["total"])
    table = [
        (kind, count["total"], f"{count['first'] / count['total']:.3f}", f"{count['later'] / count['total']:.3f}")
        for kind, count in kinds
    ]
    print(markdown(table, ("kind of mutant", "mutants", "killed by the original", "with suite")), flush=True)


if __name__ == "__main__":
    main()

"""`python -m benchmarks.verification [--official DIR]`: prints tables and, as its last line, one JSON object.

DIR is a checkout of taoyds/test-suite-sql-eval. The data is found through SPFTSQL_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path

from benchmarks.measure import Ratio, machine, markdown
from benchmarks.verification import fence, pool, predictions

# What each figure should be, where a target was set.
TARGETS = {
    "vs_bare": "at most 1.5",
    "vs_bare_golds_kept": "below 1",
    "vs_official": "at least 5",
    "per_second_per_core": "at least 2,000",
    "scaling_2": "at least 1.8",
    "runaway_in_limits": "about 1",
    "pool_vs_actors": "at least 0.9",
    "pool_vs_actors_64": "none: why batches are larger",
    "efficiency_64": "at least 0.9",
    "peak_worker_mib": "below cap_mib",
}


PARTS = ("predictions", "fence", "actors", "curve")


def main() -> None:
    """Runs all parts that can be run here, or those that are asked for, one after another."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verification", description=__doc__)
    parser.add_argument("--official", type=Path, help="a checkout of taoyds/test-suite-sql-eval")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side, in turns")
    parser.add_argument("--workers", type=int, default=pool.CURVE[-1], help="where the curve of workers ends")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="only these parts")
    given = parser.parse_args()
    data = os.environ.get("SPFTSQL_DATA")
    if not data:
        raise SystemExit("benchmarks.verification: set SPFTSQL_DATA to the folder of the benchmark data")
    root = Path(data)
    print(machine(), flush=True)
    figures: dict[str, float | Ratio | None] = {"vs_official": None}

    def add(part: Mapping[str, float | Ratio]) -> None:
        figures.update(part)
        print(markdown([_row(name, value) for name, value in part.items()], ("figure", "value", "target")), flush=True)

    if "predictions" in given.parts:
        add(predictions.beside_bare_loop(root, given.repeats))
        if given.official:
            add(predictions.beside_official(root, given.official, given.repeats))
    if "fence" in given.parts:
        add(fence.executions_per_second_per_core(given.repeats))
        add(fence.scaling_of_children(given.repeats))
        add(fence.cost_of_runaways())
        add(fence.peak_with_hostile_statements())
    if {"actors", "curve"} & set(given.parts):
        with pool.session() as config:
            if "actors" in given.parts:
                add(pool.pool_over_actors(config, given.repeats))
            if "curve" in given.parts:
                curve = pool.curve_of_waiting_workers(config, [n for n in pool.CURVE if n <= given.workers])
                print(markdown([point.row() for point in curve], pool.Point.HEADER), flush=True)
                last = curve[-1]
                add({f"efficiency_{last.workers}": last.efficiency, **pool.cost_of_a_replica(curve)})
    plain = {name: value.median if isinstance(value, Ratio) else value for name, value in figures.items()}
    print(json.dumps({name: value if value is None else round(value, 4) for name, value in plain.items()}))


def _row(name: str, value: float | Ratio) -> tuple[str, str, str]:
    shown = str(value) if isinstance(value, Ratio) else f"{value:,.2f}"
    return name, shown, TARGETS.get(name, "")


if __name__ == "__main__":
    main()

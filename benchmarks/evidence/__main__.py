"""`python -m benchmarks.evidence`: measures what is missing of the grid, smallest first; runs again where it stopped.

Each finished cell is a line of `results.jsonl` beside this module and stands in RESULTS.md at once. A cell is named by
what it is about, not by the code that measured it: to measure one again, remove its line. The last line of the output
is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.evidence.cells import Cell, Unit
from benchmarks.evidence.results import (
    AGAINST,
    Measured,
    append_results,
    gain,
    play_gain,
    read_results,
    section,
    write_section,
)
from benchmarks.evidence.runs import measure, obstacle
from benchmarks.evidence.self_play import PlayCell, PlayUnit, cells_of, whole_queue
from benchmarks.evidence.self_play_runs import measure_play

HERE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the queue."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("--only", help="cells whose name holds this text, or whose key it is")
    parser.add_argument("--list", action="store_true", help="print the cells and measure nothing")
    parser.add_argument("--max-minutes", type=float, help="start no run that would probably end later")
    parser.add_argument("--seeds", type=int, help="of each setting (default: 3, of self-play 5)")
    parser.add_argument("--model", type=Path, help="a pre-trained model, for the cells without labels")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "evidence", help="where runs keep their stages")
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--report", type=Path, default=HERE.parent / "RESULTS.md")
    given = parser.parse_args(arguments)
    units, done = whole_queue(range(given.seeds or 3), range(given.seeds or 5)), read_results(given.results)
    if given.list:
        for one in _cells(units):
            print(f"{one.key}  {'measured' if one.key in done else 'missing '}  {one.name}")
        print(json.dumps(_summary(units, done)))
        return
    data = os.environ.get("SPFTSQL_DATA")
    if not data:
        raise SystemExit("benchmarks.evidence: set SPFTSQL_DATA to the folder of the benchmark data")
    wanted = [unit for unit in units if _wanted(unit, given.only, done)]
    if given.only and not any(_named(unit, given.only) for unit in units):
        raise SystemExit(f"benchmarks.evidence: no cell is named {given.only}; --list shows them")
    reasons = {unit: why for unit in units if (why := obstacle(unit, Path(data), given.model))}
    begin, took = time.monotonic(), [0.0]
    for number, unit in enumerate(wanted, 1):
        if unit in reasons:
            print(f"{number} of {len(wanted)}: {unit} cannot run: {reasons[unit]}", flush=True)
            continue
        spent = time.monotonic() - begin
        if given.max_minutes is not None and spent + max(took) > given.max_minutes * 60:
            print(f"stopped after {spent / 60:.0f} minutes; the next run may take {max(took) / 60:.0f}")
            break
        print(f"{number} of {len(wanted)}: {unit}", flush=True)
        if isinstance(unit, PlayUnit):
            found = measure_play(unit, Path(data), given.runs)
        else:
            found = measure(unit, Path(data), given.runs, given.model)
        took.append(time.monotonic() - begin - spent)
        append_results(given.results, [one for one in found if one.key not in done])
        done = read_results(given.results)
        write_section(given.report, section(units, done, reasons))
    text = section(units, done, reasons)
    write_section(given.report, text)
    print(text)
    print(json.dumps(_summary(units, done)))


def _cells(units: Sequence[Unit | PlayUnit]) -> list[Cell | PlayCell]:
    return list(dict.fromkeys(one for unit in units for one in cells_of(unit)))


def _wanted(unit: Unit | PlayUnit, only: str | None, done: Mapping[str, Measured]) -> bool:
    missing = [one for one in cells_of(unit) if one.key not in done]
    return bool(missing) and (only is None or any(only in one.name or only == one.key for one in missing))


def _named(unit: Unit | PlayUnit, only: str) -> bool:
    return any(only in one.name or only == one.key for one in cells_of(unit))


def _summary(units: Sequence[Unit | PlayUnit], done: Mapping[str, Measured]) -> dict[str, object]:
    """Counts, and the mean gain of each setting that is measured, by the name of its cells without the seed.

    Of self-play there are two: over its start and over its control.
    """
    every = _cells(units)
    gains: dict[str, list[float]] = {}
    played: dict[str, dict[str, list[float]]] = {}
    for one in every:
        name = one.name.rpartition("/")[0]
        if isinstance(one, PlayCell):
            for against in AGAINST:
                if found := play_gain([one], done, against)[0]:
                    played.setdefault(name, {}).setdefault(against, []).extend(found)
        elif one.method not in ("sft", "control") and (found := gain([one], done)[0]):
            gains.setdefault(name, []).extend(found)
    measured = sum(one.key in done for one in every)
    return {
        "measured": measured,
        "missing": len(every) - measured,
        "gains": {name: _mean(values) for name, values in gains.items()},
        "self_play": {name: {k: _mean(v) for k, v in both.items()} for name, both in played.items()},
    }


def _mean(values: Sequence[float]) -> float:
    return round(statistics.fmean(values), 4)


if __name__ == "__main__":
    main()

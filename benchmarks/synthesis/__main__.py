"""`python -m benchmarks.synthesis [--accepted N] [--rows N] [--minutes M] …`: the speed and memory of synthesis.

Distinct accepted SQL per second and core, for GeoQuery's and Spider's databases after warm-up: templates of the
training labels and the built-in ones half and half, half of the draws with new columns, one worker; statements are
filled, kept to the rules, executed in the sandbox, judged and told apart. A second of a core is one of CPU time, of
this process and its sandbox together: on a machine that others use, wall-clock says nothing.

Then `--rows` accepted statements stream through (Spider, library and composed templates, columns always new) for at
most `--minutes`, with the resident memory of both processes on the way. The last line is one JSON object.

The data is found through SPFTSQL_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import machine, markdown, peak_mib
from spftsql.config import SandboxConfig
from spftsql.databases.reflection import reflect
from spftsql.databases.schema import Schema
from spftsql.evaluation.locations import database_configs
from spftsql.evaluation.sources import read_split
from spftsql.records import Example
from spftsql.synthesis.accepting import Tally, counts_of, judged, local_executors
from spftsql.synthesis.composition import with_composed
from spftsql.synthesis.filling import Sampler
from spftsql.synthesis.library import library, with_library
from spftsql.synthesis.templates import Template, extract_pool

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Data:
    """The databases of a benchmark that hold rows, and the templates of its labels."""

    schemas: dict[str, Schema]
    files: dict[str, Path]
    pool: list[Template]


def data_of(name: str, root: Path) -> Data:
    """GeoQuery by its question split, Spider by the published file of gold SQL."""
    configs = {db: config for db, config in database_configs(name, root).items() if Path(config.url).exists()}
    schemas = {db: reflect(db, Path(config.url), config.foreign_keys) for db, config in configs.items()}
    schemas = {db: schema for db, schema in schemas.items() if any(table.rows for table in schema.tables)}
    if name == "geoquery":
        labels = [(row.question, row.sql, row.db_id) for row in read_split(name, root, "train").rows]
    else:
        lines = (root / "train_gold.sql").read_text(encoding="utf-8").splitlines()
        pairs = [line.split("\t") for line in lines if line.strip()]
        labels = [(sql, sql, db_id.strip()) for sql, db_id in pairs]
    examples = [Example(str(i), db, question, sql, "label", "") for i, (question, sql, db) in enumerate(labels)]
    pool, _ = extract_pool(examples, schemas)
    return Data(schemas, {db: Path(configs[db].url) for db in schemas}, pool)


def family() -> list[int]:
    """This process and its children."""
    found = [os.getpid()]
    for task in Path("/proc/self/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def cpu_seconds(pids: Sequence[int]) -> list[float]:
    """The CPU time that each process has used."""
    used = []
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used.append((int(fields[11]) + int(fields[12])) / _TICKS)
    return used


def resident_mib(pids: Sequence[int]) -> float:
    """The memory that processes have now."""
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


def speed(
    data: Data, wanted: int, limits: SandboxConfig, repeats: int, batch_size: int | None = 64
) -> dict[str, float]:
    """Accepted statements per CPU second, over `repeats` stretches of `wanted` after a warm-up of as many."""
    sampler, tally = Sampler(with_library(data.pool, 0.5), data.schemas, data.files, 0, 0.5), Tally()
    rates, shares, walls = [], [], []
    with local_executors({name: str(path) for name, path in data.files.items()}, limits) as executors:
        stream = judged(sampler, executors, 10**9, batch_size, tally)

        def advance() -> int:
            """Whole windows, so that as much is drawn as is judged; the number of statements accepted meanwhile."""
            before = tally.accepted
            drawn = tally.drawn
            for _ in stream:
                if tally.drawn != drawn and tally.accepted - before >= wanted:
                    break
                drawn = tally.drawn
            return tally.accepted - before

        advance()
        for _ in range(repeats):
            pids = family()
            before, started = cpu_seconds(pids), time.perf_counter()
            made = advance()
            used = [after - b for after, b in zip(cpu_seconds(pids), before, strict=True)]
            if made < wanted:
                break  # the templates gave out
            rates.append(made / sum(used))
            walls.append(made / (time.perf_counter() - started))
            shares.append(sum(used[1:]) / sum(used))
        peak = sum(map(peak_mib, family()))
        stream.close()
    print(f"  counts: {json.dumps(dict(counts_of(tally)))}", flush=True)
    if not rates:
        raise SystemExit("benchmarks.synthesis: the templates gave out before the first stretch ended")
    rates.sort()
    return {
        "databases": len(data.schemas),
        "templates": len(data.pool),
        "accepted": tally.accepted,
        "accepted_of_executed": tally.accepted / max(1, tally.drawn),
        "per_core_second": rates[len(rates) // 2],
        "lowest": rates[0],
        "highest": rates[-1],
        "per_wall_second": sorted(walls)[len(walls) // 2],
        "share_of_cpu_in_sandbox": sorted(shares)[len(shares) // 2],
        "peak_mib": peak,
    }


def stream(data: Data, rows: int, minutes: float, limits: SandboxConfig) -> dict[str, float]:
    """Lets accepted statements pass; prints the memory at a hundred points, and says what the rows in between added."""
    pool = with_composed(library(), 0.5, data.schemas, data.files, 0, 900)
    sampler, tally, points = Sampler(pool, data.schemas, data.files, 0, 1.0), Tally(), []
    deadline, step = time.monotonic() + 60 * minutes, max(1, rows // 100)
    with local_executors({name: str(path) for name, path in data.files.items()}, limits) as executors:
        flow = judged(sampler, executors, rows, tally=tally)
        for one in flow:
            due = not one.reason and tally.accepted % step == 0
            if due or time.monotonic() > deadline:
                points.append((tally.accepted, resident_mib(family()), sampler.bytes / 2**20))
                print(f"  {tally.accepted} accepted of {tally.drawn}: {points[-1][1]:.0f} MiB", flush=True)
            if time.monotonic() > deadline:
                break
        peak = sum(map(peak_mib, family()))
        flow.close()
    print(f"  counts: {json.dumps(dict(counts_of(tally)))}", flush=True)
    half = points[len(points) // 2] if points else (0, 0.0, 0.0)
    last = points[-1] if points else (1, 0.0, 0.0)
    grown = (last[1] - half[1]) * 2**20 / max(1, last[0] - half[0])
    return {
        "rows": tally.accepted,
        "asked": rows,
        "mib_at_half": half[1],
        "mib_at_end": last[1],
        "bytes_per_row_second_half": grown,
        "seen_bytes_per_row": tally.seen_bytes / max(1, tally.accepted),
        "peak_mib": peak,
    }


def main() -> None:
    """Measures, and prints a table and the JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.synthesis", description=__doc__)
    parser.add_argument("--accepted", type=int, default=3000, help="statements per stretch of the speed measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1_000_000, help="statements that stream through; 0: none")
    parser.add_argument("--minutes", type=float, default=60, help="for the stream, at most")
    parser.add_argument("--seconds-limit", type=float, default=1.0, help="the sandbox's limit for a statement")
    parser.add_argument("--at-once", action="store_true", help="statements and checks together, as a run's stages do")
    given = parser.parse_args()
    data = os.environ.get("SPFTSQL_DATA")
    if not data:
        raise SystemExit("benchmarks.synthesis: set SPFTSQL_DATA to the folder of the benchmark data")
    limits = SandboxConfig(soft_seconds=given.seconds_limit, hard_seconds=given.seconds_limit + 2)
    print(machine(), flush=True)
    figures, spider = {}, None
    for name in ("geoquery", "spider"):
        found = data_of(name, Path(data) / name)
        spider = found
        if given.accepted:
            print(name, flush=True)
            figures[name] = speed(found, given.accepted, limits, given.repeats, None if given.at_once else 64)
    if given.rows and spider is not None:
        print("stream", flush=True)
        figures["stream"] = stream(spider, given.rows, given.minutes, limits)
    rows = [(name, figure, f"{value:.5g}") for name, found in figures.items() for figure, value in found.items()]
    print(markdown(rows, ("data", "figure", "value")))
    speeds = [found["per_core_second"] for name, found in figures.items() if name != "stream"]
    summary = {
        "accepted_per_second_per_core": round(min(speeds, default=0.0), 1),
        "peak_mib": round(max(found["peak_mib"] for found in figures.values()), 1),
    }
    nested = {name: {key: round(value, 3) for key, value in found.items()} for name, found in figures.items()}
    print(json.dumps(summary | nested))


if __name__ == "__main__":
    main()

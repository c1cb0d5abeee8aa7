"""`python -m benchmarks.templates [--only NAME] [--k K] [--every N]`: what template extraction covers and gives back.

For the labels of GeoQuery and of Spider's training split: the share that has a template, and of those whose result is
not empty the share whose template, filled with its own bindings, gives the same result under `strict` — on the
database, and on the test suite of the statement (K instances at most) for every Nth Spider database and for GeoQuery.
Statements whose joins follow no foreign key are counted apart, and so are those whose result depends on an order of
rows that nothing settles (`tied`: unverifiable, yet the same rows wherever they were run). The last line is one JSON
object.

The data is found through SPFTSQL_DATA. Without `--cache` suites are built anew, in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import machine, markdown
from spftsql.config import DatabaseConfig, SandboxConfig
from spftsql.databases.reflection import reflect
from spftsql.databases.schema import Schema
from spftsql.evaluation.locations import database_configs
from spftsql.evaluation.sources import read_split
from spftsql.records import VerificationRequest
from spftsql.suites import Suite, build_suite
from spftsql.synthesis.canonical import canonicalize
from spftsql.synthesis.joins import KeyGraph, key_graph
from spftsql.synthesis.rendering import compile_template, render
from spftsql.synthesis.templates import extract
from spftsql.verification.worker import Verifier

# As the benchmarks' own golds need it: unknown names in double quotes are strings, and some take their time.
SANDBOX = SandboxConfig(soft_seconds=30, hard_seconds=40, max_rows=1_000_000, max_bytes=400_000_000,
                        memory_mb=2048, double_quoted_strings=True)  # fmt: skip


@dataclass
class Label:
    """A labelled statement and what became of it."""

    db_id: str
    sql: str
    back: str = ""  # its template, filled with its own bindings
    template: str = ""
    keyed: bool = True  # its joins follow foreign keys
    reason: str = ""  # why it has no template


def labels_of(name: str, root: Path) -> list[Label]:
    """The labels of a benchmark; of Spider those of the published file of gold SQL."""
    if name == "geoquery":
        rows = [row for part in ("train", "dev", "test") for row in read_split(name, root, part).rows]
        return [Label(row.db_id, row.sql) for row in rows]
    lines = (root / "train_gold.sql").read_text(encoding="utf-8").splitlines()
    return [Label(db_id.strip(), sql) for sql, db_id in (line.split("\t") for line in lines if line.strip())]


def follows_keys(sql: str, schema: Schema, graph: KeyGraph) -> bool:
    """Whether every table in every FROM clause is joined over columns that keys tie together."""
    resolved = canonicalize(sql, schema)
    columns = {id(reference.node): reference for reference in resolved.references}
    for scope in resolved.scopes:
        for join in scope.select.args.get("joins") or []:
            ends = [columns.get(id(end)) for end in _ends(join.args.get("on"))]
            known = [(e.source.table.name, str(e.column)) for e in ends if e and e.source and e.source.table]
            if (
                not known
                or len(known) % 2
                or any(
                    graph.domain(one) != graph.domain(other) for one, other in zip(known[::2], known[1::2], strict=True)
                )
            ):
                return False
    return True


def _ends(condition: object) -> Iterator[object]:
    from spftsql.synthesis.canonical import conjuncts

    for part in conjuncts(condition):  # type: ignore[arg-type]
        yield from (part.args.get("this"), part.args.get("expression"))


def extract_all(labels: list[Label], databases: dict[str, DatabaseConfig]) -> None:
    """Fills in `back`, `template` and `keyed`, or `reason`."""
    schemas: dict[str, Schema] = {}
    for label in labels:
        if label.db_id not in schemas:
            config = databases[label.db_id]
            schemas[label.db_id] = reflect(label.db_id, Path(config.url), config.foreign_keys)
        schema = schemas[label.db_id]
        try:
            template, bindings = extract(label.sql, schema)
        except ValueError as error:
            label.reason = str(error)
            continue
        label.template, label.keyed = template.id, follows_keys(label.sql, schema, key_graph(schema))
        label.back = render(compile_template(template.sql), bindings, key_graph(schema)) or "not rendered"


def compared(labels: list[Label], files: list[dict[str, Path]]) -> list[tuple[str, str]]:
    """For each label its gold's status (`ran`, `empty`, …), and the first verdict but `equal` on its template's SQL.

    `unverifiable` is `tied` where both nevertheless gave the same rows on all files.

    `files` are, for each label, the files by a name of their own; the first is the original database.
    """
    names = {name: str(path) for found in files for name, path in found.items()}
    golds: list[VerificationRequest] = []
    asked: list[VerificationRequest] = []
    for number, (label, found) in enumerate(zip(labels, files, strict=True)):
        golds += [VerificationRequest(str(number), name, label.sql, None, "strict") for name in found]
        asked += [VerificationRequest(str(number), name, label.back, label.sql, "strict") for name in found]
    with Verifier(names, SANDBOX) as verifier:
        results = verifier.verify(golds)
        statuses: dict[str, str] = {}
        for gold in results:  # the first of a label is about the original
            statuses.setdefault(gold.id, "empty" if gold.status == "ran" and gold.row_count == 0 else gold.status)
        found_out = dict.fromkeys(statuses, "equal")
        for gold, verdict in zip(results, verifier.verify(asked), strict=True):
            if verdict.fault:
                raise SystemExit(f"benchmarks.templates: {verdict.fault}")
            if found_out[gold.id] in ("equal", "tied") and verdict.status != "equal":
                tied = verdict.status == "unverifiable" and verdict.digest == gold.digest
                found_out[gold.id] = "tied" if tied else verdict.status
    return [(status, found_out[number]) for number, status in statuses.items()]


def suites_of(
    labels: list[Label], databases: dict[str, DatabaseConfig], chosen: set[str], k: int, cache: Path
) -> dict[str, Suite]:
    """The suites of the chosen databases, for the labels that have a template."""
    golds: dict[str, dict[str, None]] = {}
    for label in labels:
        if label.back and label.db_id in chosen:
            golds.setdefault(label.db_id, {})[label.sql] = None
    return {
        name: build_suite(name, Path(databases[name].url), list(found), k, cache, workers=os.cpu_count() or 1)
        for name, found in golds.items()
    }


def measure(name: str, root: Path, k: int, every: int, cache: Path) -> dict[str, float]:
    """All figures of one benchmark; what did not come back is printed."""
    databases = database_configs(name, root)
    every_label = labels_of(name, root)
    labels = [label for label in every_label if label.db_id in databases]
    started = time.perf_counter()
    extract_all(labels, databases)
    figures: dict[str, float] = {
        "labels": len(labels),
        "without_database": len(every_label) - len(labels),
        "covered": sum(bool(label.back) for label in labels),
        "templates": len({label.template for label in labels if label.template}),
        "extract_seconds": time.perf_counter() - started,
    }
    for reason, count in Counter(label.reason for label in labels if label.reason).most_common():
        print(f"  {name}: {count} without a template: {reason}", flush=True)
    covered = [label for label in labels if label.back]
    original = [{label.db_id: Path(databases[label.db_id].url)} for label in covered]
    _count(figures, name, "", covered, compared(covered, original))
    if k:
        chosen = set(sorted({label.db_id for label in covered})[::every])
        started = time.perf_counter()
        suites = suites_of(covered, databases, chosen, k, cache)
        figures["suite_databases"] = len(suites)
        figures["suite_seconds"] = time.perf_counter() - started
        tested = [label for label in covered if label.db_id in suites]
        files = []
        for label in tested:
            suite = suites[label.db_id]
            places = {f"{label.db_id}/{suite.instances.index(path)}": path for path in suite.usable(label.sql)}
            files.append(places)
        figures["suite_instances"] = sum(len(found) - 1 for found in files) / max(1, len(files))
        _count(figures, name, "suite_", tested, compared(tested, files))
    return figures


def _count(
    figures: dict[str, float], name: str, prefix: str, labels: list[Label], results: list[tuple[str, str]]
) -> None:
    for kind in ("keyed", "keyless"):
        found = [
            (label, verdict)
            for label, (status, verdict) in zip(labels, results, strict=True)
            if status == "ran" and label.keyed == (kind == "keyed")
        ]
        figures[f"{prefix}{kind}"] = len(found)
        figures[f"{prefix}{kind}_back"] = sum(verdict == "equal" for _, verdict in found)
        figures[f"{prefix}{kind}_tied"] = sum(verdict == "tied" for _, verdict in found)
        for label, verdict in found:
            if verdict not in ("equal", "tied"):
                print(f"  {name} ({prefix}{kind}): {verdict}: {label.db_id}: {label.sql}\n    {label.back}", flush=True)
    figures[f"{prefix}empty"] = sum(status == "empty" for status, _ in results)
    figures[f"{prefix}failed"] = sum(status not in ("ran", "empty") for status, _ in results)


def main() -> None:
    """Measures, and prints a table and the JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.templates", description=__doc__)
    parser.add_argument("--only", choices=("geoquery", "spider"))
    parser.add_argument("--k", type=int, default=4, help="instances per statement; 0: the databases alone")
    parser.add_argument("--every", type=int, default=10, help="suites for every Nth database of Spider")
    parser.add_argument("--cache", type=Path, help="folder to keep the suites in")
    given = parser.parse_args()
    data = os.environ.get("SPFTSQL_DATA")
    if not data:
        raise SystemExit("benchmarks.templates: set SPFTSQL_DATA to the folder of the benchmark data")
    print(machine(), flush=True)
    figures = {}
    with nullcontext(given.cache) if given.cache else TemporaryDirectory() as folder:
        for name in (given.only,) if given.only else ("geoquery", "spider"):
            figures[name] = measure(name, Path(data) / name, given.k, given.every, Path(folder))
    rows = [(name, figure, f"{value:.6g}") for name, found in figures.items() for figure, value in found.items()]
    print(markdown(rows, ("data", "figure", "value")))
    print(json.dumps({name: {key: round(value, 3) for key, value in found.items()} for name, found in figures.items()}))


if __name__ == "__main__":
    main()

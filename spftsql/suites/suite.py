"""Test suites: a database, and perturbed instances of it on which only statements that mean the same agree.

After Zhong, Yu and Klein 2020, "Semantic Evaluation for Text-to-SQL with Distilled Test Suites" (arXiv 2010.02840):
candidates are made at random and kept when they tell a gold statement from its neighbours. Here the neighbours are
mutants, candidates keep to the habits of the source as well as to its schema, and every gold has its own instances,
on which its result does not depend on the order of rows.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from spftsql.databases.files import database_file, file_hash
from spftsql.errors import Fault, UserError
from spftsql.suites.building import Built, build
from spftsql.suites.store import suite_key

_MANIFEST = "suite.json"


@dataclass(frozen=True)
class Report:
    """How well a suite separates golds from their mutants.

    `mutants` are those that run on the original; `killed_original` of them give another result than their gold there,
    `killed_suite` there or on an instance of the gold. Which mutants are equivalent is not known, so that not all can
    be killed. Mutants of golds that are slow on the original are not in the counts. `alone` golds have no instance but
    the original. `kinds`: kind to (mutants, killed by the original,
    killed by the suite).
    """

    golds: int
    mutants: int
    killed_original: int
    killed_suite: int
    alone: int
    candidates: int
    kinds: Mapping[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Suite:
    """The instances of a database (`instances[0]` is the database itself) and which of them count for which gold."""

    db_id: str
    instances: tuple[Path, ...]
    chosen: Mapping[str, tuple[int, ...]]
    report: Report

    def usable(self, gold_sql: str) -> tuple[Path, ...]:
        """The files on which a prediction for this gold is compared with it: the original first, then at most k.

        Only the original where no instance separates the gold from anything. Raises `KeyError` for a gold that the
        suite was not built for.
        """
        return self.instances[0], *(self.instances[index] for index in self.chosen[gold_sql])


def build_suite(
    db_id: str,
    database: Path,
    golds: Sequence[str],
    k: int,
    cache: Path,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Suite:
    """The suite of a database for these golds, with at most `k` instances per gold; from `cache` where it is there.

    `workers` threads, each with a sandbox process, share the work; `progress` is called with (done, total). The result
    depends on the content of the database, the golds, `k`, `seed`, this code and the SQLite version: these are its key
    in `cache`, where it appears as a whole or not at all, whoever else is building it.

    Raises `UserError` for a database that cannot be read, `Fault` when statements cannot be executed for our reasons.
    """
    if k < 1:
        raise UserError(f"a suite needs at least 1 instance, not {k}")
    database = database_file(str(database))
    golds = sorted(set(golds))
    name = suite_key(db_id, file_hash(database), golds, k, seed)
    folder = cache / name
    known = _load(folder, db_id, database)
    if known is not None:
        return known
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{name}.lock"):
            known = _load(folder, db_id, database)
            if known is None:
                draft = cache / f".{name}.draft"  # what a killed builder left; nobody else is here
                for leftover in (draft, folder):
                    shutil.rmtree(leftover, ignore_errors=True)
                draft.mkdir()
                built = build(db_id, database, golds, k, seed, workers, progress, draft)
                _write_manifest(draft, db_id, golds, built)
                os.replace(draft, folder)
                known = _load(folder, db_id, database)
    except OSError as error:
        raise Fault(f"the suite of {db_id} cannot be written to {cache}: {error.strerror or error}") from None
    if known is None:
        raise Fault(f"the suite of {db_id} in {folder} was removed while it was built")
    return known


def _load(folder: Path, db_id: str, database: Path) -> Suite | None:
    """The suite in a folder; None when it is not there, or not whole."""
    try:
        tree = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    files = [folder / name for name in tree["files"]]
    if not all(file.is_file() for file in files):
        return None
    report = tree["report"]
    report["kinds"] = {kind: tuple(counts) for kind, counts in report["kinds"].items()}
    chosen = {gold: tuple(places) for gold, places in tree["chosen"].items()}
    return Suite(db_id, (database, *files), chosen, Report(**report))


def _write_manifest(folder: Path, db_id: str, golds: Sequence[str], built: Built) -> None:
    places = {candidate: place for place, candidate in enumerate(built.files, 1)}
    tree = {
        "db_id": db_id,
        "files": [file.name for file in built.files.values()],
        "chosen": {gold: [places[c] for c in built.chosen.get(number, ())] for number, gold in enumerate(golds)},
        "report": asdict(_report(golds, built)),
    }
    (folder / _MANIFEST).write_text(json.dumps(tree, ensure_ascii=False, indent=1), encoding="utf-8")


def _report(golds: Sequence[str], built: Built) -> Report:
    kinds: dict[str, tuple[int, int, int]] = {}
    for number, target in built.targets.items():
        if not target.known:
            continue
        for bit, mutant in enumerate(target.mutants):
            total, first, later = kinds.get(mutant.kind, (0, 0, 0))
            kinds[mutant.kind] = total + 1, first + (target.dead >> bit & 1), later + (built.killed[number] >> bit & 1)
    total, first, later = (sum(counts[place] for counts in kinds.values()) for place in range(3))
    alone = sum(not built.chosen.get(number) for number in range(len(golds)))
    return Report(len(golds), total, first, later, alone, built.candidates, dict(sorted(kinds.items())))

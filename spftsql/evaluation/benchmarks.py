"""Benchmarks as the loop uses them: labels to train on, a gate that decides, a test set for the table alone.

What may be seen is drawn here, once, from the run's seed: `label_share` of the training labels, and, where
the benchmark has no set of its own for the gate, `gate_share` of these. Test golds stay in the set even where
they fail.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import sqlglot

from spftsql.config import DatabaseConfig, DataConfig
from spftsql.databases.catalogue import Database, open_catalogue
from spftsql.databases.files import database_file, file_hash
from spftsql.errors import UserError
from spftsql.evaluation.hardness import spider_hardness
from spftsql.evaluation.locations import database_configs
from spftsql.evaluation.sources import Part, Questions, read_questions
from spftsql.records import Example, content_hash
from spftsql.serving.feedback import labelled_examples

PARTS: tuple[Part, ...] = ("train", "gate", "test")


@dataclass(frozen=True)
class Benchmark:
    """A benchmark prepared for one run.

    `version` is a hash of the question files, and of the database where it is one with them (GeoQuery, demo).
    `withheld` counts the training labels that `label_share` keeps from the method; `notes` are lines for the
    person who runs it, about what had to be left out.
    """

    name: str
    version: str
    databases: tuple[DatabaseConfig, ...]
    train: tuple[Example, ...]
    gate: tuple[Example, ...]
    test: tuple[Example, ...]
    withheld: int = 0
    notes: tuple[str, ...] = ()


def load_benchmark(config: DataConfig, seed: int, workspace: Path) -> Benchmark:
    """Reads the configured benchmark and draws the run's labels; the demo's database is built in `workspace`.

    Without a benchmark, and with a `label_share` of 0, there are no labels; without one there are no questions at all.
    Raises `UserError` when a file is missing or broken, when no database is there, or when nothing is left to
    train on.
    """
    benchmark = _drawn(config, seed, workspace)
    return benchmark if config.feedback is None else _with_feedback(benchmark, config)


def _drawn(config: DataConfig, seed: int, workspace: Path) -> Benchmark:
    if config.benchmark == "none":
        version = content_hash([database.model_dump(mode="json") for database in config.databases])
        return Benchmark("none", version, config.databases, (), (), ())
    whole = _demo(workspace) if config.benchmark == "demo" else _published(config)
    train, gate = _draw(whole.train, config.label_share, f"labels-{seed}"), list(whole.gate)
    withheld = len(whole.train) - len(train)
    if not gate and config.gate_share and len(train) > 1:
        gate = _draw(train, config.gate_share, f"gate-{seed}")
        held = {example.id for example in gate}
        train = [example for example in train if example.id not in held]
    if not train and config.label_share:
        raise UserError(f"{config.benchmark}: no labelled training questions; check the files in {config.root}")
    if not whole.test:
        raise UserError(f"{config.benchmark}: no test questions; check the files in {config.root}")
    canonical = open_catalogue(whole.databases) if config.canonical_sql else None
    parts = [tuple(_finished(example, canonical) for example in part) for part in (train, gate, whole.test)]
    return replace(whole, train=parts[0], gate=parts[1], test=parts[2], withheld=withheld)


def _with_feedback(benchmark: Benchmark, config: DataConfig) -> Benchmark:
    """The labels that people gave to an endpoint's answers are further training labels; none asks what is tested."""
    assert config.feedback is not None
    held_out = {(e.db_id, " ".join(e.question.lower().split())) for e in (*benchmark.gate, *benchmark.test)}
    canonical = open_catalogue(benchmark.databases) if config.canonical_sql else None
    labels = [
        _finished(example, canonical)
        for example in labelled_examples(config.feedback, (database.name for database in benchmark.databases))
        if (example.db_id, " ".join(example.question.lower().split())) not in held_out
    ]
    return replace(
        benchmark,
        version=content_hash(benchmark.version, [example.id for example in labels]),
        train=(*benchmark.train, *labels),
        notes=(*benchmark.notes, f"{len(labels)} labels come from feedback in {config.feedback}"),
    )


def template_id(sql: str) -> str:
    """The id of a statement's structure: equal for statements that differ in their literals only."""
    from spftsql.synthesis.canonical import mask_literals

    try:
        return content_hash(mask_literals(sql))
    except ValueError:
        return content_hash(sql)


def _published(config: DataConfig) -> Benchmark:
    name, root = config.benchmark, config.root
    if root is None:
        raise UserError(f"{name}: set data.root to the directory of the benchmark (--set data.root=DIR)")
    questions = {
        part: Questions((), ()) if part == "train" and not config.label_share  # then there need not be labels
        else read_questions(name, root, part, config.split)
        for part in PARTS
    }  # fmt: skip
    databases = database_configs(name, root) | {database.name: database for database in config.databases}
    examples: dict[Part, tuple[Example, ...]] = {}
    notes = []
    for part in PARTS:
        rows = questions[part].rows
        examples[part] = tuple(
            Example(
                id=f"{name}-{part}-{index:05d}",
                db_id=row.db_id,
                question=row.question,
                sql=row.sql,
                source="label",
                template="",
                hardness=row.hardness or spider_hardness(row.sql),
                evidence=row.evidence,
            )
            for index, row in enumerate(rows)
            if row.db_id in databases
        )
        absent = sorted({row.db_id for row in rows} - set(databases))
        if absent:
            notes.append(
                f"{len(rows) - len(examples[part])} of {len(rows)} {part} questions are left out: "
                f"no database file for {', '.join(absent[:5])}" + (", …" if len(absent) > 5 else "")
            )
    used = {example.db_id for part in PARTS for example in examples[part]}
    if not used:
        raise UserError(f"{name}: no database file for any question in {root}; run `spftsql data check`")
    chosen = tuple(databases[db_id] for db_id in sorted(used))
    files = {file for part in PARTS for file in questions[part].files}
    if name == "geoquery":
        files.add(database_file(chosen[0].url))
    return Benchmark(
        name=name,
        version=content_hash(sorted((file.name, file_hash(file)) for file in files)),
        databases=chosen,
        train=examples["train"],
        gate=examples["gate"],
        test=examples["test"],
        notes=tuple(notes),
    )


def _demo(workspace: Path) -> Benchmark:
    from spftsql.demo.database import DATABASE_NAME, build_database
    from spftsql.demo.questions import load_labels

    path = workspace / f"{DATABASE_NAME}.sqlite"
    workspace.mkdir(parents=True, exist_ok=True)
    build_database(path, seed=0)
    parts: dict[str, list[Example]] = {part: [] for part in PARTS}
    for label in load_labels(path, seed=0):
        parts[label.split].append(
            Example(
                id=label.id,
                db_id=DATABASE_NAME,
                question=label.question,
                sql=label.sql,
                source="label",
                template="",
                hardness=label.hardness,
            )
        )
    version = content_hash([(e.id, e.question, e.sql) for part in PARTS for e in parts[part]], file_hash(path))
    databases = (DatabaseConfig(name=DATABASE_NAME, url=str(path)),)
    train, gate, test = (tuple(parts[part]) for part in PARTS)
    return Benchmark("demo", version, databases, train, gate, test)


def _draw(examples: Sequence[Example], share: float, seed: str) -> list[Example]:
    """`share` of the examples, at least one unless it is 0, in their own order; the same ones for the same seed."""
    if share <= 0:
        return []
    if share >= 1 or not examples:
        return list(examples)
    count = min(len(examples), max(1, round(share * len(examples))))
    return [examples[i] for i in sorted(random.Random(seed).sample(range(len(examples)), count))]


def _finished(example: Example, databases: Mapping[str, Database] | None) -> Example:
    """The example with its template id, and its SQL as synthesis would write it where that is asked for."""
    sql = example.sql
    if databases is not None:
        from spftsql.synthesis.canonical import canonical_sql
        from spftsql.synthesis.dialects import in_dialect

        schema = databases[example.db_id].schema
        try:
            sql = in_dialect(canonical_sql(sql, schema), schema)
        except ValueError:
            sql = example.sql
    return replace(example, sql=sql, template=template_id(sql))


def parses(sql: str) -> bool:
    """Whether `sql` is one query that sqlglot can read and write; the method works on parse trees."""
    try:
        tree = sqlglot.parse_one(sql, dialect="sqlite")
        return isinstance(tree, sqlglot.exp.Query) and bool(tree.sql("sqlite"))
    except (sqlglot.errors.SqlglotError, RecursionError):
        return False

"""Scores a file of predicted SQL by executing it beside the gold (`spftsql score`), without Ray and torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from spftsql import __version__
from spftsql.config import DatabaseConfig, SandboxConfig
from spftsql.databases.files import database_location, file_hash
from spftsql.databases.places import Source, address_of
from spftsql.errors import UserError
from spftsql.evaluation import passes
from spftsql.evaluation.locations import database_configs, given_databases
from spftsql.evaluation.metrics import mcnemar, paired_difference
from spftsql.evaluation.passes import Prepared
from spftsql.evaluation.predictions import Predictions, of_same_questions, read_predictions
from spftsql.evaluation.score_result import NO_DATABASE, Against, ScoredItem, ScoreResult, SuiteSummary
from spftsql.evaluation.sources import Question, Questions, read_split
from spftsql.evaluation.threads import Progress, VerifierThreads
from spftsql.records import Policy, Verdict, content_hash
from spftsql.sandbox.execute import Sandbox
from spftsql.sandbox.location import Location, locate

if TYPE_CHECKING:  # imported where they are used
    from spftsql.evaluation.components import Query
    from spftsql.evaluation.exact_match import PartialScore
    from spftsql.suites import Suite

Task = Callable[[str], AbstractContextManager[Progress]]

METRICS = ("ex", "ts", "exact-match", "soft-f1", "ves", "r-ves")
DEFAULT_POLICY: dict[str, Policy] = {
    "spider": "spider",
    "bird": "bird",
    "geoquery": "strict",
    "jsonl": "strict",
}
# Benchmark golds read unknown double-quoted names as strings; some of BIRD's run for half a minute.
LIMITS = SandboxConfig(
    soft_seconds=30,
    hard_seconds=40,
    max_rows=1_000_000,
    max_bytes=256_000_000,
    memory_mb=2048,
    double_quoted_strings=True,
)
_LONGEST_S = 86_400.0
_DIALECTS = {"sqlite": "sqlite", "duckdb": "duckdb", "postgresql": "postgres"}  # sqlglot's names of the engines
# Quoted text and comments are matched first, so that what follows is neither.
_SPIDER_TOKENS = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|--[^\n]*|/\*.*?\*/"""
    r"""|\b(?P<distinct>distinct)\b|(?P<sign>[<>!]) =""",
    re.IGNORECASE | re.DOTALL,
)
_SPIDER_MARKS = re.compile(r"distinct|[<>!] =", re.IGNORECASE)  # most statements have none


@dataclass(frozen=True)
class ScoreOptions:
    """What to score and how; the fields are the options of `spftsql score`."""

    benchmark: str
    root: Path
    predictions: Path
    split: str | None = None
    databases: Path | None = None
    named: tuple[str, ...] = ()
    policy: Policy | None = None
    keep_distinct: bool = False
    suite: int = 0
    metrics: tuple[str, ...] = ("ex",)
    repeats: int = 100  # timed runs of each correct prediction and its gold, for VES and R-VES
    against: Path | None = None
    workers: int = 2
    limits: SandboxConfig = LIMITS
    samples: bool = False
    cache: bool = True  # keep the results of golds on disk


@dataclass
class _Found:
    """What the passes have found so far, by place of the question among those that are scored."""

    checks: Mapping[int, Verdict]
    originals: Sequence[Mapping[int, Verdict]]  # of each predictions file
    decided: Sequence[Mapping[int, Verdict]]  # the same over all instances of the suite
    faults: passes.Faults
    values: dict[str, Mapping[int, float]] = field(default_factory=dict)
    rounds: tuple[float, ...] = ()
    components: Mapping[str, PartialScore] | None = None
    notes: tuple[str, ...] = ()


def score(options: ScoreOptions, task: Task) -> ScoreResult:
    """Scores predictions; `task` gives a progress bar for a step, by its title.

    Without a policy the benchmark's own is used. Under `spider`, DISTINCT is dropped from both sides unless
    `keep_distinct`, as Spider's evaluator does. With a suite, an item is right when it is on every instance.
    What could not be executed for our own reasons is in the result's `faults`.
    Raises `UserError` for options and files that are wrong or do not fit together.
    """
    check_metrics(options)
    with ExitStack() as stack:
        sandboxes = [stack.enter_context(sandbox) for sandbox in _started(options)]
        test = read_split(options.benchmark, options.root, options.split)
        if not test.rows:
            raise UserError(f"{options.benchmark}: no questions in {', '.join(map(str, test.files))}")
        paths = [path for path in (options.predictions, options.against) if path]
        test, files = of_same_questions(paths, [read_predictions(path, test.rows) for path in paths], test)
        return score_predictions(options, test, files, task, sandboxes)


def _started(options: ScoreOptions) -> list[Sandbox]:
    """Sandboxes whose processes start while the questions are read; none where that cannot be said yet."""
    try:
        places = [locate(database.url) for database in _databases(options, options.split).values()]
    except UserError:
        return []  # what is wrong is said where it is needed
    engines = {place.engine for place in places if place.file and place.file.is_file()}
    if len(engines) != 1:
        return []
    sandboxes = [Sandbox(options.limits, [place.address for place in places]) for _ in range(options.workers)]
    for sandbox in sandboxes:
        sandbox.start(*engines)
    return sandboxes


def score_predictions(
    options: ScoreOptions,
    test: Questions,
    files: Sequence[Predictions],
    task: Task,
    sandboxes: Sequence[Sandbox] = (),
) -> ScoreResult:
    """`score` for questions and predictions that are read already; the second of `files` is what it is held against.

    `options` names them, and says the rest; `sandboxes` are those to use, one for each worker. Raises `UserError` where
    `score` does for the options.
    """
    wanted = check_metrics(options)
    policy = options.policy or DEFAULT_POLICY[options.benchmark]

    def text(sql: str) -> str:
        return spider_text(sql, options.keep_distinct) if policy == "spider" else sql

    golds = tuple(text(question.sql) for question in test.rows)
    places = {name: database_location(database.url) for name, database in needed_databases(options, test).items()}
    prepared = Prepared(test.rows, golds, places, policy)
    sides = [tuple(map(text, file.statements)) for file in files]
    suites = _suites(options, prepared, task) if options.suite else {}
    sources = {db_id: scored_source(location) for db_id, location in prepared.databases.items()}
    for db_id, suite in suites.items():
        for place, path in enumerate(suite.instances):
            sources.setdefault(passes.instance_name(db_id, place), scored_source(locate(path)))
    with (
        VerifierThreads(sources, options.limits, options.workers, options.cache, sandboxes) as threads,
        ThreadPoolExecutor(1) as beside,
    ):
        hardness = beside.submit(_hardness, prepared)
        with task("score") as progress:
            checks, originals = passes.verify_originals(threads, prepared, sides, progress)
        found = _Found(checks, originals, originals, passes.faults_of(checks, *originals))
        if suites and not found.faults:
            with task("test suite") as progress:
                found.decided = [
                    passes.verify_on_suites(threads, prepared, side, original, suites, progress)
                    for side, original in zip(sides, originals, strict=True)
                ]
            found.faults = passes.faults_of(*found.decided)
        found.values["ex"] = _right(originals[0])
        if suites:
            found.values["ts"] = _right(found.decided[0])
        if "exact-match" in wanted:
            _match_exactly(options, prepared, files[0], found)
        _measure(threads, options, prepared, sides[0], wanted, found, task)
        samples = None
        if options.samples and not found.faults:
            with task("samples") as progress:
                raw = files[0].statements
                samples = passes.samples_of(threads, prepared, raw, sides[0], checks, originals[0], progress)
        items = _items(test.indices, prepared, found, hardness.result())
    return ScoreResult(
        benchmark=options.benchmark,
        split=test.split,
        policy=policy,
        measure="ts" if suites else "ex",
        predictions=str(options.predictions),
        pairing=files[0].pairing,
        versions=_versions(test, sources, prepared, found),
        limits=options.limits.model_dump(exclude={"double_quoted_strings"}),
        items=items,
        notes=(*test.notes, *files[0].notes, *found.notes),
        metrics=tuple(found.values),
        components=found.components,
        rounds=found.rounds,
        suite=_summary(options, suites),
        against=_against(options, prepared, files, found),
        samples=None if samples is None else tuple(samples),
        faults=tuple((test.indices[place], fault) for place, fault in sorted(found.faults.items())),
    )


def limits(seconds: float, max_rows: int, memory_mb: int) -> SandboxConfig:
    """`LIMITS` with other ones in their place; a process is killed when it overruns the seconds by a third.

    Raises `UserError` for a number of seconds that is none.
    """
    if not 0 < seconds <= _LONGEST_S:
        raise UserError(
            f"--timeout {seconds:g}: give the seconds for one statement, above 0 and at most {_LONGEST_S:g}"
        )
    given = {"soft_seconds": seconds, "hard_seconds": seconds * 4 / 3, "max_rows": max_rows, "memory_mb": memory_mb}
    return LIMITS.model_copy(update=given)


def spider_text(sql: str, keep_distinct: bool) -> str:
    """A statement as Spider's evaluator runs it: comparison signs joined and, by default, no DISTINCT."""
    if not _SPIDER_MARKS.search(sql):
        return sql

    def replace(match: re.Match[str]) -> str:
        if match["sign"]:
            return f"{match['sign']}="
        return "" if match["distinct"] and not keep_distinct else match[0]

    return _SPIDER_TOKENS.sub(replace, sql)


def check_metrics(options: ScoreOptions) -> tuple[str, ...]:
    """The metrics asked for. Raises `UserError` for what is unknown or does not go together."""
    unknown = [name for name in options.metrics if name not in METRICS]
    if unknown:
        raise UserError(f"unknown metric {unknown[0]}; known: {', '.join(METRICS)}")
    if "ts" in options.metrics and not options.suite:
        raise UserError("the metric ts needs --suite K, the number of instances of each database")
    if {"ves", "r-ves"} & set(options.metrics) and options.repeats < 2 * passes.ROUNDS:
        raise UserError(f"--repeats {options.repeats} is too few for VES and R-VES: at least {2 * passes.ROUNDS}")
    if options.workers < 1:
        raise UserError(f"--workers {options.workers}: at least one process is needed")
    return options.metrics


def needed_databases(options: ScoreOptions, test: Questions) -> dict[str, DatabaseConfig]:
    """The databases that the questions need and that are there: named ones first, then those of the benchmark.

    Raises `UserError` when there is none.
    """
    found = _databases(options, test.split)
    databases = {question.db_id: found[question.db_id] for question in test.rows if question.db_id in found}
    if not databases:
        raise UserError(
            f"{options.benchmark}: no database file for any question in {options.root}; name their folder with "
            "--databases, or run `spftsql data check`"
        )
    return databases


def _databases(options: ScoreOptions, split: str | None) -> dict[str, DatabaseConfig]:
    found = database_configs(options.benchmark, options.root, split)
    return found | given_databases(options.databases, options.named)


def scored_source(location: Location) -> Source:
    """The place of a database with the hash of its content, by which results are kept; a server has none."""
    return Source((address_of(location),), file_hash(location.file) if location.file else None)


def _suites(options: ScoreOptions, prepared: Prepared, task: Task) -> dict[str, Suite]:
    from spftsql.cache import cache_folder
    from spftsql.suites import build_suite

    golds: dict[str, list[str]] = {}
    for index in prepared.runnable():
        golds.setdefault(prepared.questions[index].db_id, []).append(prepared.golds[index])
    folder = cache_folder("suites")
    suites: dict[str, Suite] = {}
    with task("instances") as progress:
        for db_id, statements in golds.items():
            location = prepared.databases[db_id]
            if location.file is None or location.engine != "sqlite":
                raise UserError(f"--suite: {db_id} is not a SQLite file, and only of these instances can be made")
            share = _shared(progress, len(suites), len(golds))
            suites[db_id] = build_suite(
                db_id, location.file, statements, options.suite, folder, workers=options.workers, progress=share
            )
            share(1, 1)
    return suites


def _shared(progress: Progress, number: int, databases: int) -> Progress:
    """The progress of one database as its hundred steps of the whole."""
    return lambda done, total: progress(100 * number + 100 * done // max(total, 1), 100 * databases)


def _hardness(prepared: Prepared) -> list[str]:
    if all(question.hardness for question in prepared.questions):
        return [question.hardness for question in prepared.questions]
    from spftsql.evaluation.hardness import spider_hardness  # sqlglot is imported while the first statements run

    known: dict[tuple[str, str], str] = {}  # many questions share a gold
    levels = []
    for question in prepared.questions:
        key = question.sql, _dialect(prepared, question)
        if not question.hardness and key not in known:
            known[key] = spider_hardness(*key)
        levels.append(question.hardness or known[key])
    return levels


def _dialect(prepared: Prepared, question: Question) -> str:
    location = prepared.databases.get(question.db_id)
    return _DIALECTS[location.engine] if location else "sqlite"


def _right(verdicts: Mapping[int, Verdict]) -> dict[int, float]:
    return {index: verdict.status == "equal" for index, verdict in verdicts.items()}


def _match_exactly(options: ScoreOptions, prepared: Prepared, file: Predictions, found: _Found) -> None:
    from spftsql.evaluation.components import components
    from spftsql.evaluation.exact_match import match, partial_scores
    from spftsql.evaluation.schema_names import read_names

    locations = {question.db_id: prepared.databases.get(question.db_id) for question in prepared.questions}
    names = read_names(options.benchmark, options.root, locations)
    golds: dict[tuple[str, str], Query | None] = {}  # many questions share one
    matches = {}
    for index, (question, sql) in enumerate(zip(prepared.questions, file.statements, strict=True)):
        known, dialect, key = names[question.db_id], _dialect(prepared, question), (question.db_id, question.sql)
        if key not in golds:
            golds[key] = components(question.sql, known, dialect)
        if gold := golds[key]:
            matches[index] = match(components(sql, known, dialect), gold)
    if unread := len(prepared.questions) - len(matches):
        found.notes = (*found.notes, f"{unread} golds cannot be parsed; for exact match they count as not matched")
    found.values["exact-match"] = {index: found_match.exact for index, found_match in matches.items()}
    found.components = partial_scores(matches.values())


def _measure(
    threads: VerifierThreads,
    options: ScoreOptions,
    prepared: Prepared,
    statements: Sequence[str],
    wanted: Sequence[str],
    found: _Found,
    task: Task,
) -> None:
    """The metrics that execute statements again; not after a fault, which ends the scoring."""
    original = found.originals[0]
    correct = [index for index, verdict in found.decided[0].items() if verdict.status == "equal"]
    if "soft-f1" in wanted and not found.faults:
        with task("soft-F1") as progress:
            found.values["soft-f1"], found.faults = passes.soft_f1_of(
                threads, prepared, statements, found.checks, original, progress
            )
    if "ves" in wanted and not found.faults:
        with task("VES") as progress:
            found.values["ves"], found.faults = passes.ves_of(
                threads, prepared, statements, correct, options.repeats, progress
            )
    if "r-ves" in wanted and not found.faults:
        with task("R-VES") as progress:
            rounds, found.faults = passes.r_ves_of(threads, prepared, statements, correct, options.repeats, progress)
        best = max(rounds, key=lambda scores: sum(scores.values()))
        found.values["r-ves"] = best
        found.rounds = tuple(sum(scores.values()) / len(prepared.questions) for scores in rounds)


def _items(
    indices: Sequence[int], prepared: Prepared, found: _Found, hardness: Sequence[str]
) -> tuple[ScoredItem, ...]:
    items = []
    for place, question in enumerate(prepared.questions):
        if place in found.faults:
            continue
        check, verdict = found.checks.get(place), found.decided[0].get(place)
        items.append(
            ScoredItem(
                index=indices[place],
                db_id=question.db_id,
                verdict=verdict.status if verdict else "unverifiable",
                reason=verdict.reason if verdict else NO_DATABASE,
                id=question.id,
                hardness=hardness[place],
                gold=NO_DATABASE if check is None else "" if check.status == "equal" else check.reason,
                values={name: values.get(place, 0.0) for name, values in found.values.items()},
            )
        )
    return tuple(items)


def _versions(test: Questions, sources: Mapping[str, Source], prepared: Prepared, found: _Found) -> dict[str, str]:
    """What the result depends on: the code, the files of the benchmark, the databases, the engines."""
    contents = [(name, sources[name].content or str(location)) for name, location in prepared.databases.items()]
    engines = {verdict.engine for verdict in found.checks.values() if verdict.engine}
    return {
        "spftsql": __version__,
        "benchmark": content_hash(sorted((file.name, file_hash(file)) for file in test.files)),
        "databases": content_hash(sorted(contents)),
        "engine": ", ".join(sorted(engines)),
    }


def _summary(options: ScoreOptions, suites: Mapping[str, Suite]) -> SuiteSummary | None:
    if not suites:
        return None
    reports = [suite.report for suite in suites.values()]
    return SuiteSummary(
        k=options.suite,
        instances=sum(len(suite.instances) - 1 for suite in suites.values()),
        golds=sum(report.golds for report in reports),
        alone=sum(report.alone for report in reports),
        mutants=sum(report.mutants for report in reports),
        killed_original=sum(report.killed_original for report in reports),
        killed_suite=sum(report.killed_suite for report in reports),
    )


def _against(options: ScoreOptions, prepared: Prepared, files: Sequence[Predictions], found: _Found) -> Against | None:
    if options.against is None or found.faults:
        return None
    right = [_right(verdicts) for verdicts in found.decided]
    here, there = ([bool(side.get(index)) for index in range(len(prepared.questions))] for side in right)
    test = mcnemar(here, there)
    difference, low, high = paired_difference(there, here)
    return Against(
        predictions=str(options.against),
        pairing=files[1].pairing,
        correct=tuple(there),
        only_here=test.only_a,
        only_there=test.only_b,
        p=test.p,
        difference=difference,
        interval=(low, high),
    )

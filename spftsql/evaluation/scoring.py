"""Scores a file of predicted SQL by executing it beside the gold (`spftsql score`), without Ray and torch."""

from __future__ import annotations

import json
import queue
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from spftsql import __version__
from spftsql.config import SandboxConfig
from spftsql.databases.files import database_file, file_hash
from spftsql.errors import Fault, UserError
from spftsql.evaluation.hardness import spider_hardness
from spftsql.evaluation.locations import database_configs
from spftsql.evaluation.metrics import AccuracyRow, accuracy_table, wilson
from spftsql.evaluation.predictions import read_predictions
from spftsql.evaluation.sources import PUBLISHED, Question, read_questions
from spftsql.records import Policy, Verdict, VerificationRequest, content_hash

DEFAULT_POLICY: dict[str, Policy] = {
    "spider": "spider",
    "bird": "bird",
    "geoquery": "strict",
    "jsonl": "strict",
}
NO_DATABASE = "no database file"
# Benchmark golds read unknown double-quoted names as strings; some of BIRD's run for half a minute.
LIMITS = SandboxConfig(
    soft_seconds=30,
    hard_seconds=40,
    max_rows=1_000_000,
    max_bytes=256_000_000,
    memory_mb=2048,
    double_quoted_strings=True,
)
_LEVELS = ("easy", "medium", "hard", "extra", "simple", "moderate", "challenging")
_BATCH = 32  # statements sent to a verifier at once
# Quoted text and comments are matched first, so that what follows is neither.
_SPIDER_TOKENS = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|--[^\n]*|/\*.*?\*/"""
    r"""|\b(?P<distinct>distinct)\b|(?P<sign>[<>!]) =""",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class ScoredItem:
    """The verdict on one prediction; `index` is the question's position in the benchmark."""

    index: int
    db_id: str
    verdict: str
    reason: str


@dataclass(frozen=True)
class ScoreResult:
    """What `spftsql score` found. `hardness` has one entry per item and stays out of the JSON."""

    policy: Policy
    versions: Mapping[str, str]
    items: tuple[ScoredItem, ...]
    hardness: tuple[str, ...]

    @property
    def correct(self) -> tuple[bool, ...]:
        """Which predictions are right, in the questions' order."""
        return tuple(item.verdict == "equal" for item in self.items)

    @property
    def accuracy(self) -> float:
        """The share of right predictions among all; one that cannot be verified counts as wrong."""
        return sum(self.correct) / len(self.items)

    def to_json(self) -> str:
        """The result as JSON: accuracy, policy, versions, and one item per question."""
        items = [asdict(item) for item in self.items]
        tree = {
            "accuracy": self.accuracy,
            "policy": self.policy,
            "versions": dict(self.versions),
            "items": items,
        }
        return json.dumps(tree, indent=1, ensure_ascii=False)


def score_command(
    benchmark: str,
    root: Path,
    predictions: Path,
    policy: Policy | None = None,
    keep_distinct: bool = False,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ScoreResult:
    """Scores `predictions` on the test part of a benchmark (of Spider and BIRD: dev).

    Without `policy` the benchmark's own is used. Under `spider`, DISTINCT is dropped from both sides unless
    `keep_distinct`, as Spider's evaluator does. `progress` is called with (done, total). Raises `UserError`
    for files that are missing or do not fit together, and `Fault` when a statement could not be executed for
    our own reasons.
    """
    if benchmark not in PUBLISHED:
        raise UserError(f"unknown benchmark {benchmark}; known: {', '.join(PUBLISHED)}")
    test = read_questions(benchmark, root, "test")
    if not test.rows:
        raise UserError(f"{benchmark}: no test questions in {root}")
    answers = read_predictions(predictions, test.rows).statements
    used = {question.db_id for question in test.rows}
    databases = {
        name: database_file(config.url) for name, config in database_configs(benchmark, root).items() if name in used
    }
    if not databases:
        raise UserError(f"{benchmark}: no database file for any question in {root}; run `spftsql data check`")
    chosen = policy or DEFAULT_POLICY[benchmark]
    requests = _requests(test.rows, answers, databases, chosen, keep_distinct)
    verdicts = _verify(requests, databases, workers, progress)
    versions = {
        "spftsql": __version__,
        "benchmark": content_hash(sorted((file.name, file_hash(file)) for file in test.files)),
        "databases": content_hash(sorted((name, file_hash(path)) for name, path in databases.items())),
        "engine": ", ".join(sorted({verdict.engine for verdict in verdicts.values()})),
    }
    items = []
    for index, question in enumerate(test.rows):
        verdict = verdicts.get(index)
        status, reason = (verdict.status, verdict.reason) if verdict else ("unverifiable", NO_DATABASE)
        items.append(ScoredItem(index, question.db_id, status, reason))
    hardness = tuple(question.hardness or spider_hardness(question.sql) for question in test.rows)
    return ScoreResult(chosen, versions, tuple(items), hardness)


def render(result: ScoreResult) -> str:
    """The result for a person, in Markdown: accuracy with its interval, by hardness, and the verdicts."""
    n, right = len(result.items), sum(result.correct)
    low, high = wilson(right, n)
    lines = [f"execution accuracy {right / n:.4f} ({right} of {n}, 95 % interval {low:.4f} to {high:.4f})"]
    absent = [item.db_id for item in result.items if item.reason == NO_DATABASE]
    if absent:
        rest = n - len(absent)
        low, high = wilson(right, rest)
        lines.append(
            f"{len(absent)} questions have no database file ({', '.join(sorted(set(absent)))}) "
            "and count as wrong; "
            f"over the {rest} others {right / rest:.4f} (95 % interval {low:.4f} to {high:.4f})"
        )
    lines.append(f"policy {result.policy}; " + "; ".join(f"{k} {v}" for k, v in result.versions.items()))
    counts = Counter(result.hardness)
    solved = Counter(level for level, right in zip(result.hardness, result.correct, strict=True) if right)
    order = sorted(counts, key=lambda level: (_LEVELS.index(level) if level in _LEVELS else len(_LEVELS), level))
    rows = [AccuracyRow(level, solved[level], counts[level]) for level in order]
    mix = Counter(item.verdict for item in result.items).most_common()
    lines += ["", accuracy_table(rows, header="hardness"), "", "| verdict | questions |", "|---|---|"]
    lines += [f"| {verdict} | {count} |" for verdict, count in mix]
    return "\n".join(lines)


def spider_text(sql: str, keep_distinct: bool) -> str:
    """A statement as Spider's evaluator runs it: comparison signs joined and, by default, no DISTINCT."""

    def replace(match: re.Match[str]) -> str:
        if match["sign"]:
            return f"{match['sign']}="
        return "" if match["distinct"] and not keep_distinct else match[0]

    return _SPIDER_TOKENS.sub(replace, sql)


def _requests(
    questions: Sequence[Question],
    answers: Sequence[str],
    databases: Mapping[str, Path],
    policy: Policy,
    keep_distinct: bool,
) -> dict[int, VerificationRequest]:
    requests = {}
    for index, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        if question.db_id in databases:
            sql, gold = answer, question.sql
            if policy == "spider":
                sql, gold = spider_text(sql, keep_distinct), spider_text(gold, keep_distinct)
            requests[index] = VerificationRequest(str(index), question.db_id, sql, gold, policy)
    return requests


def _verify(
    requests: Mapping[int, VerificationRequest],
    databases: Mapping[str, Path],
    workers: int,
    progress: Callable[[int, int], None],
) -> dict[int, Verdict]:
    """The verdict of every request; each of `workers` threads has its own verifier, thus a child process."""
    from spftsql.verification.batches import batches_by_database
    from spftsql.verification.worker import Verifier

    batches: queue.SimpleQueue[list[VerificationRequest]] = queue.SimpleQueue()
    for batch in batches_by_database(list(requests.values()), _BATCH):
        batches.put(batch)
    verdicts: dict[int, Verdict] = {}
    progress(0, len(requests))

    def work() -> None:
        with Verifier(databases, LIMITS) as verifier:
            while True:
                try:
                    batch = batches.get_nowait()
                except queue.Empty:
                    return
                verdicts.update((int(verdict.id), verdict) for verdict in verifier.verify(batch))
                progress(len(verdicts), len(requests))

    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        for future in [pool.submit(work) for _ in range(max(1, workers))]:
            future.result()
    faults = [(index, verdict.fault) for index, verdict in verdicts.items() if verdict.fault]
    if faults:
        index, fault = faults[0]
        raise Fault(f"{len(faults)} statements could not be verified (question {index}: {fault}); run again")
    return verdicts

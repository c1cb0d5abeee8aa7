"""The passes of a scoring over its questions: verdicts, suites, rows, times; each gives values by index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from spftsql.errors import Fault
from spftsql.evaluation.result_metrics import r_ves, soft_f1, time_ratio, ves
from spftsql.evaluation.score_result import Row, Sample
from spftsql.evaluation.sources import Question
from spftsql.evaluation.threads import Progress, VerifierThreads
from spftsql.records import Policy, Verdict, VerificationRequest
from spftsql.sandbox.location import Location
from spftsql.verification.batches import batches_by_database
from spftsql.verification.worker import Verifier

if TYPE_CHECKING:  # importing it takes SQLAlchemy along
    from spftsql.suites import Suite

ROUNDS = 5  # of R-VES, which is the best of so many
SAMPLE_ROWS = 5
_SAMPLE_MS = 1000.0  # statements that take longer are not executed again to be shown
_BATCH = 64  # requests sent to a verifier at once

Faults = dict[int, str]
T = TypeVar("T")


@dataclass(frozen=True)
class Prepared:
    """Questions, and their golds as they are run; only those whose database is in `databases` can be."""

    questions: tuple[Question, ...]
    golds: tuple[str, ...]
    databases: Mapping[str, Location]
    policy: Policy

    def runnable(self) -> list[int]:
        """The indices of the questions that have a database."""
        return [index for index, question in enumerate(self.questions) if question.db_id in self.databases]

    def request(self, name: str, index: int, sql: str, database: str | None = None) -> VerificationRequest:
        """A request to compare `sql` with the gold of a question, on its own database or another."""
        return VerificationRequest(
            f"{name} {index}", database or self.questions[index].db_id, sql, self.golds[index], self.policy
        )


def verify_originals(
    threads: VerifierThreads, prepared: Prepared, sides: Sequence[Sequence[str]], progress: Progress
) -> tuple[dict[int, Verdict], list[dict[int, Verdict]]]:
    """The verdicts on the golds against themselves, and on the statements of each side, by index."""
    first: dict[tuple[str, str], int] = {}
    requests = []
    for index in prepared.runnable():
        requests += [prepared.request(str(side), index, sqls[index]) for side, sqls in enumerate(sides)]
        gold = (prepared.questions[index].db_id, prepared.golds[index])
        if gold not in first:
            first[gold] = index
            requests.append(prepared.request("gold", index, prepared.golds[index]))
    verdicts = threads.verify(batches_by_database(requests, _BATCH), progress)
    checks = {
        index: verdicts[f"gold {first[prepared.questions[index].db_id, prepared.golds[index]]}"]
        for index in prepared.runnable()
    }
    return checks, [{index: verdicts[f"{side} {index}"] for index in checks} for side in range(len(sides))]


def instance_name(db_id: str, place: int) -> str:
    """What an instance of a database is called among the databases; `place` 0 is the database itself."""
    return db_id if place == 0 else f"{db_id} instance {place}"


def verify_on_suites(
    threads: VerifierThreads,
    prepared: Prepared,
    statements: Sequence[str],
    original: Mapping[int, Verdict],
    suites: Mapping[str, Suite],
    progress: Progress,
) -> dict[int, Verdict]:
    """The verdicts over all usable instances, given those on the original: what is equal there is tried elsewhere."""
    requests = []
    for index, verdict in original.items():
        if verdict.status == "equal":
            db_id = prepared.questions[index].db_id
            suite = suites[db_id]
            for instance in suite.usable(prepared.golds[index])[1:]:
                place = suite.instances.index(instance)
                requests.append(prepared.request(str(place), index, statements[index], instance_name(db_id, place)))
    found: dict[int, list[tuple[int, Verdict]]] = {}
    for name, verdict in threads.verify(batches_by_database(requests, _BATCH), progress).items():
        place, index = map(int, name.split())
        found.setdefault(index, []).append((place, verdict))
    return {
        index: over_instances(verdict, sorted(found.get(index, []), key=lambda pair: pair[0]))
        for index, verdict in original.items()
    }


def over_instances(original: Verdict, others: Iterable[tuple[int, Verdict]]) -> Verdict:
    """One verdict: the first that is not `equal`, with its instance in the reason.

    An instance on which the gold itself cannot be verified says nothing. A fault on any instance is a fault.
    """
    decided = original
    for place, verdict in others:
        if verdict.fault:
            return replace(verdict, id=original.id, fault=f"instance {place}: {verdict.fault}")
        gold_fails = verdict.status == "unverifiable" and verdict.reason.startswith(("gold", "encoding"))
        if decided.status == "equal" and verdict.status != "equal" and not gold_fails:
            decided = replace(original, status=verdict.status, reason=f"instance {place}: {verdict.reason}")
    return decided


def soft_f1_of(
    threads: VerifierThreads,
    prepared: Prepared,
    statements: Sequence[str],
    checks: Mapping[int, Verdict],
    original: Mapping[int, Verdict],
    progress: Progress,
) -> tuple[dict[int, float], Faults]:
    """Soft-F1 by index; 0 where prediction or gold gives no result."""
    compared = [
        index
        for index, verdict in original.items()
        if verdict.status not in ("error", "timeout", "truncated") and not checks[index].reason.startswith("gold ")
    ]

    def work(verifier: Verifier, index: int) -> float:
        db_id = prepared.questions[index].db_id
        prediction, gold = (verifier.run(db_id, sql) for sql in (statements[index], prepared.golds[index]))
        return soft_f1(prediction.rows, gold.rows) if prediction.status == gold.status == "ran" else 0.0

    return _sorted_out(compared, threads.run(compared, work, progress))


def ves_of(
    threads: VerifierThreads,
    prepared: Prepared,
    statements: Sequence[str],
    correct: Sequence[int],
    repeats: int,
    progress: Progress,
) -> tuple[dict[int, float], Faults]:
    """VES by index of the correct predictions: times until the first row, as BIRD's program takes them."""

    def work(verifier: Verifier, index: int) -> float:
        times = _times(verifier, prepared, statements, index, repeats, first_row=True)
        return ves(time_ratio(*times)) if times else 0.0

    return _sorted_out(correct, threads.run(correct, work, progress))


def r_ves_of(
    threads: VerifierThreads,
    prepared: Prepared,
    statements: Sequence[str],
    correct: Sequence[int],
    repeats: int,
    progress: Progress,
) -> tuple[list[dict[int, float]], Faults]:
    """R-VES of each round by index of the correct predictions: times until the last row is here.

    Each of the `ROUNDS` has its share of the repeats. Opening the database is not in the times: it is open.
    """

    def work(verifier: Verifier, index: int) -> list[float]:
        times = _times(verifier, prepared, statements, index, repeats, first_row=False)
        if times is None:
            return [0.0] * ROUNDS
        size = repeats // ROUNDS
        shares = [slice(start * size, (start + 1) * size) for start in range(ROUNDS)]
        return [r_ves(time_ratio(times[0][share], times[1][share])) for share in shares]

    by_index, faults = _sorted_out(correct, threads.run(correct, work, progress))
    return [{index: scores[number] for index, scores in by_index.items()} for number in range(ROUNDS)], faults


def _times(
    verifier: Verifier, prepared: Prepared, statements: Sequence[str], index: int, repeats: int, first_row: bool
) -> tuple[list[float], list[float]] | None:
    """Milliseconds of the gold and of the prediction, taken in turns; None when a run failed."""
    db_id = prepared.questions[index].db_id
    gold, prediction = list[float](), list[float]()
    for _ in range(repeats):
        for sql, times in ((statements[index], prediction), (prepared.golds[index], gold)):
            run = verifier.run(db_id, sql, max_rows=0 if first_row else None)
            if run.status not in ("ran", "truncated"):
                return None
            times.append(run.elapsed_ms)
    return gold, prediction


def samples_of(
    threads: VerifierThreads,
    prepared: Prepared,
    raw: Sequence[str],
    statements: Sequence[str],
    checks: Mapping[int, Verdict],
    original: Mapping[int, Verdict],
    progress: Progress,
) -> list[Sample]:
    """What a person wants to see of each question; rows only where they are cheap, and where nothing goes wrong."""

    def rows(verifier: Verifier, db_id: str, sql: str, known: Verdict) -> tuple[Row, ...] | None:
        if known.status in ("error", "timeout", "unverifiable") or known.elapsed_ms > _SAMPLE_MS:
            return None
        run = verifier.run(db_id, sql, max_rows=SAMPLE_ROWS)
        return tuple(run.rows) if run.status in ("ran", "truncated") else None

    def work(verifier: Verifier, index: int) -> tuple[tuple[Row, ...] | None, tuple[Row, ...] | None]:
        db_id = prepared.questions[index].db_id
        gold = rows(verifier, db_id, prepared.golds[index], checks[index])
        return gold, rows(verifier, db_id, statements[index], original[index])

    shown = list(original)
    results = dict(zip(shown, threads.run(shown, work, progress), strict=True))
    samples = []
    for index, question in enumerate(prepared.questions):
        result = results.get(index)
        gold, prediction = (None, None) if result is None or isinstance(result, Fault) else result
        samples.append(Sample(question.question, question.evidence, question.sql, raw[index], gold, prediction))
    return samples


def faults_of(*groups: Mapping[int, Verdict]) -> Faults:
    """The questions that could not be verified for our reasons."""
    return {index: verdict.fault for group in groups for index, verdict in group.items() if verdict.fault}


def _sorted_out(indices: Sequence[int], results: Sequence[T | Fault]) -> tuple[dict[int, T], Faults]:
    values, faults = {}, {}
    for index, result in zip(indices, results, strict=True):
        if isinstance(result, Fault):
            faults[index] = str(result)
        else:
            values[index] = result
    return values, faults

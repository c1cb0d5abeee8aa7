"""SQL that is worth a question: drawn from templates, executed in the sandbox, kept where its result tells something.

`judged` draws windows of statements, has them executed, and judges them in the order in which they were drawn. What
a result says about a template reaches the drawing of the window after the next, however fast the executors are: so the
same seed gives the same statements on any number of workers, in batches of any size.

Two statements ask for the same where they are one template over the same columns and tables of one database, give the
same result, and differ in values that bound something (`> 10`, BETWEEN, LIMIT, HAVING COUNT) and in nothing else; and
also where such a result is long, whatever the values: then the condition made no difference. So `COUNT(*)` = 3 for two
cities are two questions, and `population > 1000` beside `population > 1001` with one list is one.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

from spftsql.config import SandboxConfig
from spftsql.databases.places import Databases
from spftsql.records import Statement, Verdict, VerificationRequest
from spftsql.synthesis.checks import executed, objection
from spftsql.synthesis.filling import Candidate, Sampler
from spftsql.synthesis.seen import Seen, key_of
from spftsql.verification.worker import Verifier

Executor = Callable[[Sequence[VerificationRequest]], Sequence[Verdict]]

WINDOW = 512  # statements drawn before any of them is judged, at least
_PER_DATABASE = 32  # so many on average where there are many databases: each has to be opened
_LARGEST_WINDOW = 8192
_AHEAD = 2  # windows that are drawn, and not yet judged; fixed, because it decides what is drawn
_LONG = 3  # rows of a result that two statements do not share by chance
_PAUSES_S = (1, 2, 4, 8)  # before statements that failed for our reasons are tried again


@dataclass
class Tally:
    """How many statements were drawn and accepted, and how many draws came to nothing, by reason.

    `seconds` is the time in which the sandbox executed them, `seen_bytes` what remembering them takes.
    """

    drawn: int = 0
    accepted: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    seen_bytes: int = 0


@contextmanager
def local_executors(databases: Databases, limits: SandboxConfig, workers: int = 1) -> Iterator[list[Executor]]:
    """Executors that drive sandbox processes of this machine, for `accepted`; closed at the end."""
    with ExitStack() as stack:
        yield [stack.enter_context(Verifier(databases, limits, index=index)).verify for index in range(workers)]


@dataclass(frozen=True, slots=True)
class Judged:
    """A statement that was executed. `reason` says why it is dropped; empty where it is accepted."""

    statement: Statement
    verdict: Verdict
    reason: str


def accepted(
    sampler: Sampler,
    executors: Sequence[Executor],
    count: int,
    batch_size: int | None = 64,
    tally: Tally | None = None,
) -> Iterator[Statement]:
    """Up to `count` statements that `judged` accepts."""
    return (one.statement for one in judged(sampler, executors, count, batch_size, tally) if not one.reason)


def judged(
    sampler: Sampler,
    executors: Sequence[Executor],
    count: int,
    batch_size: int | None = 64,
    tally: Tally | None = None,
) -> Iterator[Judged]:
    """All that is executed until `count` statements are accepted, or no template gives anything new.

    Accepted is what ran, gave a result that says something, and asks for what none before asked for. Each executor is
    called from a thread of its own, with batches of one database, first the statements and then their checks; or with
    all that is waiting at once (`batch_size` None), where a call costs more than checks in vain. It may be a
    `Verifier`'s `verify`, a call of the verifier pool, or a whole stage. Reasons, counted in `tally` beside those of
    the sampler: `error`, `timeout`, `truncated`, `empty` (or a count or sum of nothing), `constant-null` (no cell but
    NULL), `not-deterministic` (another result would be as right), `no-effect` (the same result without its HAVING,
    EXISTS or IN (SELECT …)), `limit-without-effect` (fewer rows than LIMIT), `same-result` (see above), `structure`
    (enough like it), `fault` (could not be executed for our reasons, again and again).
    """
    tally = tally if tally is not None else Tally()
    results = Seen()
    size = min(max(WINDOW, _PER_DATABASE * sampler.databases), _LARGEST_WINDOW)
    waiting: deque[tuple[list[Candidate], list[Future[Mapping[str, Verdict]]]]] = deque()
    free: deque[Executor] = deque(executors)

    def execute(batch: Sequence[Candidate]) -> Mapping[str, Verdict]:
        executor = free.popleft()  # as many as there are threads
        try:
            asked = [(one.statement, one.checks) for one in batch]
            return executed(asked, partial(_without_faults, executor), at_once=batch_size is None)
        finally:
            free.append(executor)

    with ThreadPoolExecutor(max_workers=len(executors), thread_name_prefix="synthesis") as threads:
        try:
            while tally.accepted < count:
                while len(waiting) < _AHEAD:
                    window = _window(sampler, size)
                    if not window:
                        break
                    tally.drawn += len(window)
                    batches = [window] if batch_size is None else _by_database(window, batch_size)
                    waiting.append((window, [threads.submit(execute, batch) for batch in batches]))
                if not waiting:
                    break
                window, running = waiting.popleft()
                verdicts = {name: verdict for future in running for name, verdict in future.result().items()}
                tally.seconds += sum(verdict.elapsed_ms for verdict in verdicts.values()) / 1000
                for candidate in window:
                    if tally.accepted == count:
                        break
                    verdict = verdicts[candidate.statement.id]
                    reason = objection(candidate.statement, candidate.checks, verdicts)
                    reason = reason or _repeats(candidate, verdict, results)
                    if not sampler.tell(candidate, not reason, reason != "timeout") and not reason:
                        reason = "structure"
                    if reason:
                        tally.dropped[reason] += 1
                    else:
                        tally.accepted += 1
                    yield Judged(candidate.statement, verdict, reason)
        finally:
            tally.dropped.update(sampler.counts)
            tally.seen_bytes = results.bytes + sampler.bytes
            for _, running in waiting:
                for future in running:
                    future.cancel()


def _window(sampler: Sampler, size: int) -> list[Candidate]:
    window: list[Candidate] = []
    while len(window) < size and (candidate := sampler.draw()) is not None:
        window.append(candidate)
    return window


def _by_database(window: Sequence[Candidate], size: int) -> Iterator[list[Candidate]]:
    """Batches of at most `size` statements of one database."""
    groups: dict[str, list[Candidate]] = {}
    for one in window:
        groups.setdefault(one.statement.db_id, []).append(one)
    return (group[start : start + size] for group in groups.values() for start in range(0, len(group), size))


def _without_faults(executor: Executor, batch: Sequence[VerificationRequest]) -> Sequence[Verdict]:
    """The verdicts of a batch; what failed for our reasons is tried again, with pauses."""
    verdicts = {verdict.id: verdict for verdict in executor(batch)}
    for pause in _PAUSES_S:
        faulty = [request for request in batch if verdicts[request.id].fault]
        if not faulty:
            break
        time.sleep(pause)
        verdicts |= {verdict.id: verdict for verdict in executor(faulty)}
    return list(verdicts.values())


def _repeats(candidate: Candidate, verdict: Verdict, results: Seen) -> str:
    """Why a statement whose result says something asks for nothing new; empty where it does."""
    if candidate.limit is not None and verdict.row_count < candidate.limit:
        return "limit-without-effect"
    scope = candidate.structure if verdict.row_count >= _LONG else candidate.question
    return "same-result" if results.add(key_of(str(scope), verdict.digest)) else ""


def counts_of(tally: Tally) -> Mapping[str, int]:
    """Drawn, accepted, and every reason, most frequent first: for a run's events."""
    return {"drawn": tally.drawn, "accepted": tally.accepted} | dict(tally.dropped.most_common())

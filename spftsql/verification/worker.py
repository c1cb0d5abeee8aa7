"""`Verifier`: statements in, verdicts out, by way of sandbox processes. Knows nothing of Ray."""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import fields, replace
from operator import attrgetter
from typing import Any, Self, cast

from spftsql.config import SandboxConfig
from spftsql.databases.places import Databases, Source, sources_of
from spftsql.errors import Fault, UserError
from spftsql.records import Policy, Status, Verdict, VerificationRequest
from spftsql.sandbox.execute import Sandbox
from spftsql.sandbox.result import Execution, Granted
from spftsql.serving.voting import Contest, vote
from spftsql.verdicts import Stability, digest, verdict_of
from spftsql.verification.cache import ResultCache, engine_version, repeatable, result_keys
from spftsql.verification.gold_stability import gold_stability
from spftsql.verification.node_cache import NodeCache
from spftsql.verification.replicas import Executor, ExecutorFactory, Replicas

CHUNK = 16  # statements whose results are in memory together
_CACHE_BYTES = 64 << 20
_PATIENCE = 3  # statements in a row that may fail for our reasons before the rest is given up
_WORTH_KEEPING_MS = 1.0  # statements that are no gold and faster are executed again for less than keeping them costs

_CERTAIN = Stability()

_FIELDS = tuple(field.name for field in fields(Verdict))
_values = attrgetter(*_FIELDS)

_Question = tuple[str | None, str]  # gold statement and policy
_Outcomes = dict[str, Execution | Fault]


class _Part:
    """The part of one call that is about one database: what is known of its content, for as long as the call takes.

    Results of a content that has no name are kept for the call.
    """

    def __init__(self, replicas: Replicas, sandbox: Executor, call: str) -> None:
        self.replicas, self._sandbox = replicas, sandbox
        self._identity = replicas.identity(sandbox)
        self._faults = replicas.faults
        self.content, self.durable = self._identity or (call, False)
        self.failed_golds: dict[bytes, Execution] = {}  # not `repeatable`, and too dear to try with every prediction

    def has_changed(self) -> bool:
        """Whether a file has another content than when the call began.

        A server that others write to changes all the time: its golds are executed with its predictions.
        """
        known = self._identity is not None and self.replicas.is_file
        return known and self.replicas.identity(self._sandbox) != self._identity

    def is_certain(self) -> bool:
        """Whether the content that was named is the one that was asked: of servers, one may have taken over."""
        return self.replicas.is_file or self.replicas.faults == self._faults


class Verifier:
    """Verifies statements on named databases, with one child process per engine.

    A context manager; `close` ends the children. May be shared between threads, which then take turns.
    """

    def __init__(
        self,
        databases: Databases,
        config: SandboxConfig,
        *,
        results: ResultCache | None = None,
        node_cache: NodeCache | None = None,
        index: int = 0,
        sandbox: ExecutorFactory = Sandbox,
        digests: bool = True,
    ) -> None:
        """`databases` are files or URLs by name, several where a database has replicas. Nothing is opened yet.

        `results` and `node_cache` may be shared with other verifiers. Verifiers of different `index` prefer different
        replicas. `sandbox` makes what executes the statements. Without `digests`, which are work on large results, no
        verdict has one. Raises `UserError` for an address that cannot be used.
        """
        self._sources = sources_of(databases)
        self.limits, self._index = config, index
        self._results = results or ResultCache(_CACHE_BYTES)
        self._node_cache = node_cache
        self._sandbox, self._digests = sandbox(config), digests
        self._replicas: dict[Source, Replicas] = {}
        self._counts: Counter[str] = Counter()
        self._name, self._calls = uuid.uuid4().hex, itertools.count()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child processes."""
        self._sandbox.close()

    def verify(
        self, requests: Sequence[VerificationRequest], sources: Mapping[str, Source] | None = None
    ) -> list[Verdict]:
        """One verdict per request, in the same order; `sources` replace the databases of the constructor.

        Identical statements are executed once, and not at all while their result is kept. What fails for our reasons,
        on every replica and after the sandbox's own retries, has `fault` set and status `unverifiable`; nothing is
        raised.
        """
        return cast(list[Verdict], self._verify(requests, sources, None))

    def verify_some(
        self, requests: Sequence[VerificationRequest], sources: Mapping[str, Source] | None, seconds: float
    ) -> list[Verdict | None]:
        """As `verify`, but what has not begun after so many seconds is left: None in its place.

        Some are done in any case, so that asking again for those that are left comes to an end.
        """
        return self._verify(requests, sources, time.monotonic() + seconds)

    def _verify(
        self, requests: Sequence[VerificationRequest], sources: Mapping[str, Source] | None, until: float | None
    ) -> list[Verdict | None]:
        verdicts: dict[Hashable, Verdict] = {}
        by_database: dict[str, dict[str, list[_Question]]] = {}
        for request in requests:
            questions = by_database.setdefault(request.db_id, {}).setdefault(request.sql, [])
            questions.append((request.gold_sql, request.policy))
        known = self._sources if sources is None else sources
        for db_id, asked in by_database.items():
            part = None
            if db_id in known:
                part = _Part(self._of(known[db_id]), self._sandbox, f"call {self._name} {next(self._calls)}")
            for chunk in _chunks(list(asked), CHUNK):
                if verdicts and until is not None and time.monotonic() > until:
                    break
                questions_of = {sql: dict.fromkeys(asked[sql]) for sql in chunk}
                for sql, question, verdict in self._judge(db_id, part, questions_of):
                    verdicts[db_id, sql, question] = verdict
        found = [(r.id, verdicts.get((r.db_id, r.sql, (r.gold_sql, r.policy)))) for r in requests]
        answers = [None if verdict is None else _copy(verdict, id=name) for name, verdict in found]
        self._count(requests=len(answers) - answers.count(None))
        return answers

    def run(
        self, db_id: str, sql: str, max_rows: int | None = None, sources: Mapping[str, Source] | None = None
    ) -> Execution:
        """Executes one statement for its rows. Raises `UserError` for an unknown database, `Fault` as the replicas."""
        replicas = self._known(db_id, sources)
        self._count(executed=1)
        return replicas.execute(self._sandbox, [sql], max_rows)[0]

    def plan(
        self,
        db_id: str,
        sql: str,
        granted: Granted | None = None,
        sources: Mapping[str, Source] | None = None,
    ) -> Execution:
        """How the engine would execute a statement (see `spftsql.sandbox.query_plan`). Raises as `run`."""
        return self._known(db_id, sources).plan(self._sandbox, sql, granted)

    def contest(
        self,
        db_id: str,
        candidates: Sequence[str],
        max_rows: int,
        granted: Granted | None = None,
        sources: Mapping[str, Source] | None = None,
    ) -> Contest:
        """Executes candidates for one question, each text once, and lets their results vote; nothing is kept.

        The rows of the winner are those of this one execution, at most `max_rows`. A lone candidate is cut there by the
        engine; results that are compared are read to the configured limit. Raises as `run`.
        """
        replicas = self._known(db_id, sources)
        distinct = list(dict.fromkeys(candidates))
        self._count(executed=len(distinct))
        limit = max_rows if len(distinct) == 1 else None
        executions = replicas.execute(self._sandbox, distinct, limit, granted)
        results = dict(zip(distinct, executions, strict=True))
        bare = {sql: _bare_verdict(db_id, result, named=True) for sql, result in results.items()}
        verdicts = [bare[sql] for sql in candidates]
        shown = results[vote(candidates, verdicts)[0].sql]
        if len(shown.rows) > max_rows:
            shown = replace(shown, status="truncated", rows=shown.rows[:max_rows])
        return Contest(verdicts, shown)

    def stats(self) -> dict[str, Any]:
        """Counts so far: `requests`, statements `executed`, results `kept` that were used again, `faults` of ours.

        `replicas` are the states of every database's replicas, by their address.
        """
        states: dict[str, Any] = {}
        for replicas in list(self._replicas.values()):
            states |= replicas.states()
        names = ("requests", "executed", "kept", "faults")
        return {name: self._counts[name] for name in names} | {"replicas": states}

    def _count(self, **counts: int) -> None:
        with self._lock:
            self._counts.update(counts)

    def _known(self, db_id: str, sources: Mapping[str, Source] | None) -> Replicas:
        known = self._sources if sources is None else sources
        if db_id not in known:
            raise UserError(f"no database is named {db_id}; known: {', '.join(sorted(known))}")
        return self._of(known[db_id])

    def _of(self, source: Source) -> Replicas:
        with self._lock:
            if source not in self._replicas:
                self._replicas[source] = Replicas(source, self._index, self._node_cache)
            return self._replicas[source]

    def _judge(
        self, db_id: str, part: _Part | None, asked: Mapping[str, Iterable[_Question]]
    ) -> Iterator[tuple[str, _Question, Verdict]]:
        golds = {gold for questions in asked.values() for gold, _ in questions if gold is not None}
        stabilities: Mapping[str, Stability | Fault] = {}
        if part is None:
            results: _Outcomes = dict.fromkeys([*golds, *asked], Fault(f"no database is named {db_id}"))
        else:
            results = self._outcomes(part, golds, asked)
            stabilities = self._stabilities(part, asked, results)
        for sql, questions in asked.items():
            result = results[sql]
            bare = _bare_verdict(db_id, result, self._digests)
            for question in questions:
                gold, policy = question
                yield sql, question, _with_gold(bare, sql, result, gold, results, stabilities, cast(Policy, policy))

    def _stabilities(
        self, part: _Part, asked: Mapping[str, Iterable[_Question]], results: _Outcomes
    ) -> dict[str, Stability | Fault]:
        """What the data leaves open in the golds; only the policy `strict` minds."""
        golds = {gold for questions in asked.values() for gold, policy in questions if gold and policy == "strict"}
        ran = {gold: result for gold in golds if not isinstance(result := results[gold], Fault)}
        return gold_stability(ran, part.replicas.engine, lambda statements: self._outcomes(part, statements, ()))

    def _outcomes(self, part: _Part, golds: Set[str], others: Iterable[str]) -> _Outcomes:
        """What every statement gives: kept results first, then one execution for each that is not kept."""
        replicas, engine = part.replicas, engine_version(part.replicas.engine) or part.replicas.engine
        statements = list(dict.fromkeys([*golds, *others]))
        keys = result_keys(part.content, statements, self.limits, engine)
        found: dict[bytes, Execution | Fault] = dict(self._results.get_many(set(keys.values())))
        found |= {key: part.failed_golds[key] for key in keys.values() if key in part.failed_golds}
        wanted = {key: sql for sql, key in reversed(keys.items()) if key not in found}  # a gold before its equals
        executed = dict(zip(wanted, self._execute(replicas, list(wanted.values())), strict=True))
        self._count(executed=len(wanted), kept=len(statements) - len(wanted))
        if executed and part.has_changed():
            self._count(faults=1)
            return dict.fromkeys(statements, Fault("the database changed while statements were executed on it"))
        worth: dict[bytes, Execution] = {}
        for key, result in executed.items():
            if isinstance(result, Fault) or not result.engine.startswith(engine) or not part.is_certain():
                continue
            sql = wanted[key]
            if sql not in golds and result.elapsed_ms < _WORTH_KEEPING_MS:
                continue
            if repeatable(sql, result, replicas.engine):
                worth[key] = result
            elif sql in golds and not result.rows:
                part.failed_golds[key] = result
        self._results.put_many(worth, part.durable)
        found |= executed
        return {sql: found[key] for sql, key in keys.items()}

    def _execute(self, replicas: Replicas, statements: Sequence[str]) -> list[Execution | Fault]:
        """Executes a batch; after a fault one by one, so that only what is really at fault is lost."""
        if not statements:
            return []
        try:
            return list(replicas.execute(self._sandbox, statements))
        except Fault as fault:
            self._count(faults=1)
            if len(statements) == 1:
                return [fault]
        results: list[Execution | Fault] = []
        for sql in statements:
            recent = results[-_PATIENCE:]
            if len(recent) == _PATIENCE and all(isinstance(result, Fault) for result in recent):
                results.append(recent[-1])
            else:
                results += self._execute(replicas, [sql])
        return results


def _bare_verdict(db_id: str, result: Execution | Fault, named: bool) -> Verdict:
    """The verdict on a statement without a gold; the id is not yet set."""
    if isinstance(result, Fault):
        return Verdict("", db_id, "unverifiable", "fault", 0.0, 0, False, "", "", fault=str(result))
    rows = result.rows
    return Verdict(
        id="",
        db_id=db_id,
        status=result.status,
        reason=result.reason,
        elapsed_ms=result.elapsed_ms,
        row_count=len(rows),
        constant_null=bool(rows) and all(cell is None for row in rows for cell in row),
        digest=digest(rows) if named and result.status == "ran" else "",  # a cut result equals nothing
        engine=result.engine,
    )


def _with_gold(
    bare: Verdict,
    sql: str,
    result: Execution | Fault,
    gold: str | None,
    results: Mapping[str, Execution | Fault],
    stabilities: Mapping[str, Stability | Fault],
    policy: Policy,
) -> Verdict:
    if gold is None or isinstance(result, Fault):
        return bare
    gold_result = results[gold]
    stability = stabilities.get(gold, _CERTAIN) if policy == "strict" else _CERTAIN
    if isinstance(gold_result, Fault) or isinstance(stability, Fault):
        fault = gold_result if isinstance(gold_result, Fault) else stability
        return _copy(bare, status="unverifiable", reason="fault", fault=f"gold: {fault}")
    status: Status
    status, reason = verdict_of(result, gold_result, gold, policy, sql, stability)
    return _copy(bare, status=status, reason=reason)


def _copy(verdict: Verdict, **changes: Any) -> Verdict:
    """As `dataclasses.replace`, in a third of its time."""
    return Verdict(**dict(zip(_FIELDS, _values(verdict), strict=True), **changes))


def _chunks(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]

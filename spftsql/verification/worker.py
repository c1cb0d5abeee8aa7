"""`Verifier`: statements in, verdicts out, by way of one sandbox process. Knows nothing of Ray."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self, cast

from spftsql.config import SandboxConfig
from spftsql.errors import Fault, UserError
from spftsql.records import Policy, Status, Verdict, VerificationRequest
from spftsql.sandbox.execute import Sandbox
from spftsql.sandbox.result import Execution
from spftsql.verdicts import digest, verdict_of
from spftsql.verification.cache import ResultCache

_CHUNK = 16  # statements whose results are in memory together
_CACHED_CELLS = 2_000_000
_PATIENCE = 3  # statements in a row that may fail for our reasons before the rest is given up

_Question = tuple[str | None, str]  # gold statement and policy


class Verifier:
    """Verifies statements on named databases (name to SQLite file) with one child process.

    A context manager; `close` ends the child. May be shared between threads, which then take turns.
    """

    def __init__(self, databases: Mapping[str, Path], config: SandboxConfig) -> None:
        self._databases = dict(databases)
        self._sandbox = Sandbox(config)
        self._golds = ResultCache(_CACHED_CELLS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child process."""
        self._sandbox.close()

    def verify(self, requests: Sequence[VerificationRequest]) -> list[Verdict]:
        """One verdict per request, in the same order.

        Identical requests are executed once, and a gold statement once as long as its result is kept. What fails for
        our reasons, after the sandbox's own retries, has `fault` set and status `unverifiable`; nothing is raised.
        """
        verdicts: dict[Hashable, Verdict] = {}
        by_database: dict[str, dict[str, list[_Question]]] = {}
        for request in requests:
            questions = by_database.setdefault(request.db_id, {}).setdefault(request.sql, [])
            questions.append((request.gold_sql, request.policy))
        for db_id, asked in by_database.items():
            for chunk in _chunks(list(asked), _CHUNK):
                questions_of = {sql: dict.fromkeys(asked[sql]) for sql in chunk}
                for sql, question, verdict in self._judge(db_id, questions_of):
                    verdicts[db_id, sql, question] = verdict
        return [replace(verdicts[r.db_id, r.sql, (r.gold_sql, r.policy)], id=r.id) for r in requests]

    def run(self, db_id: str, sql: str, max_rows: int | None = None) -> Execution:
        """Executes one statement for its rows. Raises `UserError` for an unknown database, `Fault` as the sandbox."""
        if db_id not in self._databases:
            raise UserError(f"no database is named {db_id}; known: {', '.join(sorted(self._databases))}")
        return self._sandbox.execute(self._databases[db_id], [sql], max_rows)[0]

    def _judge(self, db_id: str, asked: Mapping[str, Iterable[_Question]]) -> Iterator[tuple[str, _Question, Verdict]]:
        golds = {gold for questions in asked.values() for gold, _ in questions if gold is not None}
        results = self._results(db_id, golds, asked)
        for sql, questions in asked.items():
            result = results[sql]
            bare = _bare_verdict(db_id, result)
            for question in questions:
                gold, policy = question
                yield sql, question, _with_gold(bare, sql, result, gold, results, cast(Policy, policy))

    def _results(self, db_id: str, golds: Iterable[str], others: Iterable[str]) -> dict[str, Execution | Fault]:
        """What every statement gives; golds are looked up first and kept."""
        if db_id not in self._databases:
            fault = Fault(f"no database is named {db_id}")
            return dict.fromkeys([*golds, *others], fault)
        database = self._databases[db_id]
        state = _state(database)
        results: dict[str, Execution | Fault] = {}
        for gold in golds:
            if (kept := self._golds.get((database, state, gold))) is not None:
                results[gold] = kept
        wanted = [sql for sql in dict.fromkeys([*golds, *others]) if sql not in results]
        results |= zip(wanted, self._execute(database, wanted), strict=True)
        for gold in golds:
            result = results[gold]
            if not isinstance(result, Fault):
                self._golds.put((database, state, gold), result)
        return results

    def _execute(self, database: Path, statements: Sequence[str]) -> list[Execution | Fault]:
        """Executes a batch; after a fault one by one, so that only what is really at fault is lost."""
        try:
            return list(self._sandbox.execute(database, statements))
        except Fault as fault:
            if len(statements) == 1:
                return [fault]
        results: list[Execution | Fault] = []
        for sql in statements:
            recent = results[-_PATIENCE:]
            if len(recent) == _PATIENCE and all(isinstance(result, Fault) for result in recent):
                results.append(recent[-1])
            else:
                results += self._execute(database, [sql])
        return results


def _bare_verdict(db_id: str, result: Execution | Fault) -> Verdict:
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
        digest=digest(rows) if result.status == "ran" else "",  # a cut result equals nothing
        engine=result.engine,
    )


def _with_gold(
    bare: Verdict,
    sql: str,
    result: Execution | Fault,
    gold: str | None,
    results: Mapping[str, Execution | Fault],
    policy: Policy,
) -> Verdict:
    if gold is None or isinstance(result, Fault):
        return bare
    gold_result = results[gold]
    if isinstance(gold_result, Fault):
        return replace(bare, status="unverifiable", reason="fault", fault=f"gold: {gold_result}")
    status: Status
    status, reason = verdict_of(result, gold_result, gold, policy, sql)
    return replace(bare, status=status, reason=reason)


def _state(database: Path) -> tuple[int, ...]:
    """Changes when the file does, so that results of another content are not used."""
    try:
        now = database.stat()
    except OSError:
        return ()
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns


def _chunks(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]

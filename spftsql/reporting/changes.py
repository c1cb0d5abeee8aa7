"""What changed between two candidates on the same questions, with both results, executed in the sandbox again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from spftsql.databases.files import database_location
from spftsql.databases.places import Source, address_of
from spftsql.errors import Fault, UserError
from spftsql.evaluation.score_result import Row
from spftsql.evaluation.threads import VerifierThreads
from spftsql.records import Example
from spftsql.reporting.run_record import RunRecord
from spftsql.reporting.stored import StoredAnswer, spread
from spftsql.verification.worker import Verifier

SAMPLE_ROWS = 5
Rows = tuple[Row, ...] | None


@dataclass(frozen=True)
class Change:
    """A question that one of two candidates got right and the other wrong. Rows are None where they are not known."""

    kind: Literal["fixed", "broken"]
    example: Example
    before: StoredAnswer
    after: StoredAnswer
    gold_rows: Rows = None
    before_rows: Rows = None
    after_rows: Rows = None


def changes(before: Sequence[StoredAnswer], after: Sequence[StoredAnswer]) -> list[Change]:
    """The fixed questions, then the broken ones."""
    old = {answer.example.id: answer for answer in before}
    found: list[Change] = []
    for answer in after:
        was = old.get(answer.example.id)
        if was is not None and was.right != answer.right:
            found.append(Change("fixed" if answer.right else "broken", answer.example, was, answer))
    return sorted(found, key=lambda change: (change.kind == "broken", change.example.id))


def shown_changes(found: Sequence[Change], most: int) -> list[Change]:
    """At most `most` of them, half of each kind where there are so many."""
    fixed = [change for change in found if change.kind == "fixed"]
    broken = [change for change in found if change.kind == "broken"]
    half = most // 2
    room = max(half, most - len(broken)), max(half, most - len(fixed))
    return spread(fixed, room[0]) + spread(broken, room[1])


def with_rows(found: Sequence[Change], record: RunRecord, databases: Mapping[str, str]) -> tuple[list[Change], str]:
    """The changes with the first rows of what gold and both answers return, and a note about what could not be had."""
    sources = {}
    for name, address in databases.items():
        try:
            sources[name] = Source((address_of(database_location(address)),))
        except UserError:
            continue
    usable = [change for change in found if change.example.db_id in sources]
    if not usable or record.config is None:
        return list(found), "their databases are not here, so no results are shown" if found else ""
    limits = record.config.sandbox

    def rows(verifier: Verifier, db_id: str, sql: str) -> Rows:
        run = verifier.run(db_id, sql, max_rows=SAMPLE_ROWS)
        return tuple(run.rows) if run.status in ("ran", "truncated") else None

    def work(verifier: Verifier, change: Change) -> Change:
        db_id = change.example.db_id
        return replace(
            change,
            gold_rows=rows(verifier, db_id, change.example.sql),
            before_rows=rows(verifier, db_id, change.before.sql),
            after_rows=rows(verifier, db_id, change.after.sql),
        )

    with VerifierThreads(sources, limits, 1, cache=False) as threads:
        executed = threads.run(usable, work, lambda done, total: None)
    done = {id(change): result for change, result in zip(usable, executed, strict=True)}
    kept = [result if not isinstance(result := done.get(id(c), c), Fault) else c for c in found]
    lost = sum(isinstance(result, Fault) for result in executed)
    return kept, f"the results of {lost} could not be had: the sandbox failed" if lost else ""

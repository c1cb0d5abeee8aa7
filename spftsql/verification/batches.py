"""Cutting requests into batches of one database."""

from __future__ import annotations

from collections.abc import Iterable

from spftsql.records import VerificationRequest


def batches_by_database(requests: Iterable[VerificationRequest], size: int) -> list[list[VerificationRequest]]:
    """Batches of at most `size` requests of one database, those with the same gold beside each other."""
    by_database: dict[str, list[VerificationRequest]] = {}
    for request in requests:
        by_database.setdefault(request.db_id, []).append(request)
    batches = []
    for group in by_database.values():
        group.sort(key=lambda request: request.gold_sql or "")
        batches += [group[start : start + size] for start in range(0, len(group), size)]
    return batches

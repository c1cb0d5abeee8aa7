"""Cutting requests into batches of one database."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence

from spftsql.records import VerificationRequest

SMALLEST = 16  # rows of a batch that is a share of what waits: fewer cost more to send than most take to execute


def batches_by_database(requests: Iterable[VerificationRequest], size: int) -> list[list[VerificationRequest]]:
    """Batches of at most `size` requests of one database, those with the same gold beside each other."""
    batches = []
    for group in _by_database(requests).values():
        batches += [group[start : start + size] for start in range(0, len(group), size)]
    return batches


class Waiting:
    """Requests that wait for workers, cut into batches of one database when a worker is free. Threads may share it.

    A batch is a share of all that waits: large while there is much to do, so that sending costs little, and small at
    the end, so that all workers are done at about the same time (guided self-scheduling, Polychronopoulos and Kuck
    1987).
    """

    def __init__(self, requests: Iterable[VerificationRequest], largest: int) -> None:
        """No batch has more than `largest` requests; those with the same gold are beside each other."""
        self._groups = OrderedDict((name, deque(group)) for name, group in _by_database(requests).items())
        self._largest = largest
        self._count = sum(map(len, self._groups.values()))
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._count

    def take(self, workers: int) -> list[VerificationRequest]:
        """The next batch for one of so many workers: half of its share of all that waits; empty when nothing does."""
        with self._lock:
            if not self._groups:
                return []
            name, group = next(iter(self._groups.items()))
            share = max(math.ceil(self._count / (2 * workers)), SMALLEST)
            batch = [group.popleft() for _ in range(min(share, self._largest, len(group)))]
            self._count -= len(batch)
            if not group:
                del self._groups[name]
            return batch

    def put_back(self, requests: Sequence[VerificationRequest]) -> None:
        """Requests of one database that were taken, and that a worker did not come to: they are the next."""
        if not requests:
            return
        with self._lock:
            name = requests[0].db_id
            self._groups.setdefault(name, deque()).extendleft(reversed(requests))
            self._groups.move_to_end(name, last=False)
            self._count += len(requests)


def _by_database(requests: Iterable[VerificationRequest]) -> dict[str, list[VerificationRequest]]:
    by_database: dict[str, list[VerificationRequest]] = {}
    for request in requests:
        by_database.setdefault(request.db_id, []).append(request)
    for group in by_database.values():
        group.sort(key=lambda request: request.gold_sql or "")
    return by_database

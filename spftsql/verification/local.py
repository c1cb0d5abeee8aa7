"""The verification stage in one process: threads, each of which drives child processes of its own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from spftsql.config import Config
from spftsql.databases.places import Databases
from spftsql.errors import disk_faults
from spftsql.records import Verdict, VerificationRequest, read_records, write_records
from spftsql.usage import Use
from spftsql.verification.batches import Waiting
from spftsql.verification.cache import open_results
from spftsql.verification.node_cache import open_node_cache
from spftsql.verification.samples import Checks, SampleReader
from spftsql.verification.worker import Verifier

_PAUSES_S = (1, 2, 4, 8)  # before rows that failed for our reasons are tried again


def verify_dataset(
    source: Path, target: Path, databases: Databases, config: Config, progress: Callable[[int, int], None]
) -> Use:
    """Reads `VerificationRequest` rows from `source` and writes one `Verdict` each, in their order, to `target`.

    `target` is a directory with one Parquet file. A row that fails for our reasons, again and again, has `fault` set.
    `progress` gets (verdicts, requests). Raises `Fault` when the disk is full.
    """
    begin = time.monotonic()
    requests = read_records(source, VerificationRequest)
    with _Verifiers(databases, config) as verifiers:
        verdicts = verifiers.verify(requests, progress)
        for pause in _PAUSES_S:
            faulty = [request for request in requests if verdicts[request.id].fault]
            if not faulty:
                break
            time.sleep(pause)
            verdicts |= verifiers.verify(faulty)
    with disk_faults(target):
        write_records(target / "verdicts.parquet", [verdicts[request.id] for request in requests], Verdict)
    return verifiers.use(time.monotonic() - begin, len(requests))


class PartVerifying:
    """Verifies the parts of samples that are handed over, in a thread beside whoever writes them.

    A context manager: its end waits for what was handed over, unless the body has failed. Without `checks` it does
    nothing. What goes wrong here costs time and no verdict: the verification stage executes what is missing.
    """

    def __init__(self, checks: Checks | None, parts: Path, config: Config) -> None:
        self._checks, self._parts, self._config = checks, parts, config
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._verified = 0
        self._verifiers: _Verifiers | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        if self._checks is not None:
            self._verifiers = _Verifiers(self._checks.sources, self._config)
            self._thread = threading.Thread(target=self._work, args=(self._checks, self._verifiers), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._thread is not None:
            if kind is not None and self._verifiers is not None:
                self._verifiers.stop.set()
            self._queue.put(None)
            self._thread.join()
        if kind is None and self._failure is not None:
            raise self._failure

    def hand_over(self, part: str) -> None:
        """Has a stored part verified, by its name."""
        if self._checks is not None and not self._checks.has(part):
            self._queue.put(part)

    def use(self, wall_s: float) -> Use:
        """What the verifiers did, in a stage that took so long."""
        assert self._verifiers is not None
        return self._verifiers.use(wall_s, self._verified)

    def _work(self, checks: Checks, verifiers: _Verifiers) -> None:
        try:
            with verifiers:
                reader = SampleReader(checks)
                while (part := self._queue.get()) is not None and not verifiers.stop.is_set():
                    requests = reader.statements(self._parts / part)
                    verdicts = verifiers.verify(requests)
                    if len(verdicts) == len(requests):  # else it was stopped on the way
                        checks.store(part, requests, verdicts.values())
                        self._verified += len(requests)
        except BaseException as error:  # raised where the body ends: a full disk above all
            self._failure = error


class _Verifiers:
    """A `Verifier` for each thread, with what they share. A context manager; its end ends their child processes."""

    def __init__(self, databases: Databases, config: Config) -> None:
        self._databases, self._config = databases, config
        self._busy: list[float] = []
        self.stop = threading.Event()

    def __enter__(self) -> Self:
        config, self._open = self._config, ExitStack()
        results, node_cache = open_results(config.verification), open_node_cache(config.verification)
        self._open.callback(results.close)
        if node_cache:
            self._open.callback(node_cache.close)
        self._verifiers = [
            Verifier(self._databases, config.sandbox, results=results, node_cache=node_cache, index=index)
            for index in range(config.verification.workers)
        ]
        for verifier in self._verifiers:
            self._open.callback(verifier.close)
        self._busy = [0.0] * len(self._verifiers)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def use(self, wall_s: float, rows: int) -> Use:
        return Use("verifiers", len(self._busy), round(sum(self._busy), 3), round(wall_s, 3), rows=rows)

    def verify(
        self, requests: Sequence[VerificationRequest], progress: Callable[[int, int], None] | None = None
    ) -> dict[str, Verdict]:
        """The verdict of every request by its id; each verifier has a thread."""
        waiting = Waiting(requests, self._config.verification.batch_size)
        lock, found = threading.Lock(), dict[str, Verdict]()

        def work(index: int) -> None:
            while not self.stop.is_set() and (batch := waiting.take(len(self._verifiers))):
                begin = time.monotonic()
                verdicts = self._verifiers[index].verify(batch)
                self._busy[index] += time.monotonic() - begin
                with lock:
                    found.update({verdict.id: verdict for verdict in verdicts})
                    if progress is not None:
                        progress(len(found), len(requests))

        with ThreadPoolExecutor(max_workers=len(self._verifiers)) as threads:
            try:
                list(threads.map(work, range(len(self._verifiers))))
            except BaseException:
                self.stop.set()  # Ctrl-C: no thread takes another batch
                raise
        return found

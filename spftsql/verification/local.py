"""The verification stage in one process: threads, each of which drives child processes of its own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from pathlib import Path

from spftsql.config import Config
from spftsql.databases.places import Databases
from spftsql.errors import disk_faults
from spftsql.records import Verdict, VerificationRequest, read_records, write_records
from spftsql.verification.batches import batches_by_database
from spftsql.verification.cache import open_results
from spftsql.verification.node_cache import open_node_cache
from spftsql.verification.worker import Verifier

_PAUSES_S = (1, 2, 4, 8)  # before rows that failed for our reasons are tried again


def verify_dataset(source: Path, target: Path, databases: Databases, config: Config) -> None:
    """Reads `VerificationRequest` rows from `source` and writes one `Verdict` each, in their order, to `target`.

    `target` is a directory with one Parquet file. A row that fails for our reasons, again and again, has `fault` set.
    Raises `Fault` when the disk is full.
    """
    requests = read_records(source, VerificationRequest)
    results, node_cache = open_results(config.verification), open_node_cache(config.verification)
    with closing(results), closing(node_cache) if node_cache else nullcontext():
        verifiers = [
            Verifier(databases, config.sandbox, results=results, node_cache=node_cache, index=index)
            for index in range(config.verification.workers)
        ]
        try:
            verdicts = _verified(requests, verifiers, config.verification.batch_size)
            for pause in _PAUSES_S:
                faulty = [request for request in requests if verdicts[request.id].fault]
                if not faulty:
                    break
                time.sleep(pause)
                verdicts |= _verified(faulty, verifiers, config.verification.batch_size)
        finally:
            for verifier in verifiers:
                verifier.close()
    with disk_faults(target):
        write_records(target / "verdicts.parquet", [verdicts[request.id] for request in requests], Verdict)


def _verified(
    requests: Sequence[VerificationRequest], verifiers: Sequence[Verifier], batch_size: int
) -> dict[str, Verdict]:
    """The verdict of every request by its id; each verifier has a thread."""
    batches: queue.SimpleQueue[list[VerificationRequest]] = queue.SimpleQueue()
    for batch in batches_by_database(requests, batch_size):
        batches.put(batch)
    stop = threading.Event()

    def work(verifier: Verifier) -> list[Verdict]:
        verdicts: list[Verdict] = []
        while not stop.is_set():
            try:
                batch = batches.get_nowait()
            except queue.Empty:
                break
            verdicts += verifier.verify(batch)
        return verdicts

    with ThreadPoolExecutor(max_workers=len(verifiers)) as threads:
        try:
            parts = list(threads.map(work, verifiers))
        finally:
            stop.set()  # Ctrl-C: no thread takes another batch
    return {verdict.id: verdict for part in parts for verdict in part}

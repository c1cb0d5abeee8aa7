"""The verification stage in one process: threads, each of which drives a child process of its own."""

from __future__ import annotations

import queue
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from spftsql.config import Config
from spftsql.records import Verdict, VerificationRequest, read_records, write_records
from spftsql.verification.batches import batches_by_database
from spftsql.verification.worker import Verifier


def verify_dataset(source: Path, target: Path, databases: Mapping[str, Path], config: Config) -> None:
    """Reads `VerificationRequest` rows from `source` and writes one `Verdict` each, in their order, to `target`.

    `target` is a directory with one Parquet file. A row that fails for our reasons has `fault` set.
    """
    requests = read_records(source, VerificationRequest)
    batches: queue.SimpleQueue[list[VerificationRequest]] = queue.SimpleQueue()
    for batch in batches_by_database(requests, config.verification.batch_size):
        batches.put(batch)

    def work() -> list[Verdict]:
        verdicts: list[Verdict] = []
        with Verifier(databases, config.sandbox) as verifier:
            while True:
                try:
                    batch = batches.get_nowait()
                except queue.Empty:
                    return verdicts
                verdicts += verifier.verify(batch)

    workers = config.verification.workers
    with ThreadPoolExecutor(max_workers=workers) as threads:
        parts = [future.result() for future in [threads.submit(work) for _ in range(workers)]]
    by_id = {verdict.id: verdict for part in parts for verdict in part}
    write_records(target / "verdicts.parquet", [by_id[request.id] for request in requests], Verdict)

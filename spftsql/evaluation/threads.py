"""Threads that share the work of a scoring, each with a verifier, thus a sandbox process, of its own."""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from typing import Self, TypeVar

from spftsql.config import SandboxConfig, VerificationConfig
from spftsql.databases.places import Source
from spftsql.errors import Fault
from spftsql.records import Verdict, VerificationRequest
from spftsql.sandbox.execute import Sandbox
from spftsql.verification.cache import open_results
from spftsql.verification.worker import Verifier

Progress = Callable[[int, int], None]  # (done, total)
Job = TypeVar("Job")
Result = TypeVar("Result")


class VerifierThreads:
    """`workers` threads over databases by name. A context manager; at its end the sandbox processes are gone.

    Results of golds are shared, and with `cache` kept on disk for the next time. Verdicts have no digests, unless
    `digests` asks for them.
    """

    def __init__(
        self,
        databases: Mapping[str, Source],
        limits: SandboxConfig,
        workers: int,
        cache: bool,
        sandboxes: Sequence[Sandbox] = (),
        digests: bool = False,
    ) -> None:
        """`sandboxes` are those to use, one for each worker; by default they are made here."""
        addresses = [address for source in databases.values() for address in source.addresses]
        given = iter(sandboxes or [Sandbox(limits, addresses) for _ in range(workers)])
        self._stack = ExitStack()
        results = open_results(VerificationConfig() if cache else VerificationConfig(node_cache=None))
        self._stack.callback(results.close)
        self._free: queue.SimpleQueue[Verifier] = queue.SimpleQueue()
        for _ in range(workers):
            verifier = Verifier(databases, limits, results=results, sandbox=lambda _: next(given), digests=digests)
            self._free.put(self._stack.enter_context(verifier))
        self._threads = self._stack.enter_context(ThreadPoolExecutor(max_workers=workers))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._stack.close()

    def run(
        self,
        jobs: Sequence[Job],
        work: Callable[[Verifier, Job], Result],
        progress: Progress,
        size: Callable[[Job], int] = lambda job: 1,
    ) -> list[Result | Fault]:
        """What `work` gives for each job, or the fault that it raised, in the jobs' order.

        `size` is what a job counts in the progress.
        """
        total, done = sum(map(size, jobs)), 0
        progress(0, total)

        def one(job: Job) -> Result | Fault:
            verifier = self._free.get()
            try:
                return work(verifier, job)
            except Fault as fault:
                return fault
            finally:
                self._free.put(verifier)

        futures = {self._threads.submit(one, job): job for job in jobs}
        for future in as_completed(futures):
            future.result()
            done += size(futures[future])
            progress(done, total)
        return [future.result() for future in futures]

    def verify(self, batches: Sequence[Sequence[VerificationRequest]], progress: Progress) -> dict[str, Verdict]:
        """The verdicts of all requests by their ids; a request that failed for our reasons has `fault` set."""
        parts = self.run(batches, lambda verifier, batch: verifier.verify(batch), progress, len)
        return {verdict.id: verdict for part in parts if not isinstance(part, Fault) for verdict in part}

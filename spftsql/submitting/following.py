"""A job's output as it comes, whatever the connection does; and why nothing comes while it waits."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console

from spftsql.errors import Fault
from spftsql.submitting.server import (
    Resources,
    beyond,
    cluster_status,
    has_fixed_size,
    in_words,
    nodes,
    offered,
    waiting,
)

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

DRIVER_KEY = "spftsql-driver"  # of a job's metadata: what its driver takes, which the server does not tell
_POLL_S = 1.0
_RETRY_S = (1.0, 30.0)  # the first pause after a lost connection, and the longest
_GIVE_UP_S = 1800.0  # of silence of the cluster; the job goes on all the same
_SILENCE_S = 60.0  # of the stream, upon which it is asked for anew
_DEMAND_S = 30.0  # between two looks at what waits for room
_console = Console(stderr=True, highlight=False)


class Follower:
    """The output of one job, each character once.

    A lost connection is taken up again; the server's stream always begins at the start, so what was shown is left out.
    """

    def __init__(self, client: JobSubmissionClient, job: str) -> None:
        """Follows `job`; `follow` does the work."""
        self._client, self._job = client, job
        self._shown = 0
        self._told = ""  # the last line about waiting
        self._lost_since: float | None = None

    def follow(self) -> int:
        """Streams until the job ends; returns its exit code, 1 where it has none.

        Raises `Fault` when the cluster is silent for half an hour.
        """
        from aiohttp import ClientError

        try:
            while True:
                try:
                    info = self._client.get_job_info(self._job)
                    self._found_again()
                    if info.status.value == "PENDING":
                        self._tell(self._why_pending(info))
                        time.sleep(_POLL_S)
                        continue
                    asyncio.run(self._stream())
                    info = self._client.get_job_info(self._job)
                    if info.status.is_terminal():
                        self._rest()
                        return self._outcome(info)
                # What the client raises for a connection: aiohttp's and requests' errors, and RuntimeError for answers.
                except (RuntimeError, OSError, ClientError, Fault) as error:
                    if "does not exist" in str(error):
                        raise Fault(f"the cluster does not know job {self._job} any more: submit it again") from None
                    self._lost(error)
        except KeyboardInterrupt:
            _console.print(f"Job {self._job} goes on; the same command takes it up again.", soft_wrap=True)
            raise

    async def _stream(self) -> None:
        """Shows the stream until it ends or is silent for a while: a connection can be dead without saying so."""
        watcher = asyncio.create_task(self._watch_demand())
        position = 0
        stream = self._client.tail_job_logs(self._job)
        try:
            while True:
                text = await asyncio.wait_for(anext(stream), _SILENCE_S)
                self._found_again()
                position = self._show(text, position)
        except (StopAsyncIteration, TimeoutError):
            return
        finally:
            watcher.cancel()

    async def _watch_demand(self) -> None:
        """Says from time to time what of the job waits for room in the cluster."""
        while True:
            await asyncio.sleep(_DEMAND_S)
            try:
                status = await asyncio.to_thread(cluster_status, self._client)
            except Fault:
                continue
            self._tell(demand_line(waiting(status), offered(status), has_fixed_size(status)))

    def _show(self, text: str, position: int) -> int:
        new = text[max(0, self._shown - position) :]
        if new:
            sys.stdout.write(new)
            sys.stdout.flush()
        self._shown = max(self._shown, position + len(text))
        return position + len(text)

    def _rest(self) -> None:
        """What was written between the end of the stream and the end of the job."""
        self._show(self._client.get_job_logs(self._job), 0)

    def _why_pending(self, info: JobDetails) -> str:
        wanted = json.loads((info.metadata or {}).get(DRIVER_KEY, "{}"))
        lacking = beyond(wanted, 1, nodes(self._client))
        if lacking:
            return f"Job {self._job} is pending: its driver needs {lacking}."
        return f"Job {self._job} is pending: {(info.message or 'it starts').splitlines()[0]}"

    def _tell(self, line: str) -> None:
        if line and line != self._told:
            _console.print(line, markup=False, soft_wrap=True)
        self._told = line

    def _lost(self, error: Exception) -> None:
        now = time.monotonic()
        if self._lost_since is None:
            self._lost_since = now
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            _console.print(
                f"The connection is lost ({reason}); trying again, the job goes on.", markup=False, soft_wrap=True
            )
        silent = now - self._lost_since
        if silent > _GIVE_UP_S:
            raise Fault(f"the cluster is silent for {silent / 60:.0f} minutes; `spftsql jobs logs` takes it up again")
        time.sleep(min(max(_RETRY_S[0], silent / 2), _RETRY_S[1]))

    def _found_again(self) -> None:
        if self._lost_since is not None:
            self._lost_since = None
            _console.print("The connection is back.")

    def _outcome(self, info: JobDetails) -> int:
        if info.status.value == "SUCCEEDED":
            return 0
        message = (info.message or "no message").splitlines()[0]
        _console.print(f"Job {self._job} {info.status.value.lower()}: {message}", markup=False, soft_wrap=True)
        return info.driver_exit_code or 1


def follow_job(client: JobSubmissionClient, job: str) -> int:
    """Streams a job's output until it ends; returns its exit code (`Follower.follow`)."""
    return Follower(client, job).follow()


def demand_line(demands: list[tuple[Resources, int]], offers: list[Resources], fixed: bool) -> str:
    """What waits for room, in words; empty when nothing does."""
    parts = []
    for each, count in demands:
        if each:
            lacking = beyond(each, 1, offers)
            never = f" (needs {lacking}{'' if fixed else ', or a new node'})" if lacking else ""
            parts.append(f"{count} x {in_words(each)}{never}")
    return f"Waiting for room in the cluster: {'; '.join(parts)}" if parts else ""

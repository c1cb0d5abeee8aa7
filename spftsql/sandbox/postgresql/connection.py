"""One connection to a server, in libpq's pipeline mode, with a clock for what is sent over it.

In pipeline mode several messages share one way to the server and back; what is sent behind a synchronisation runs even
when what stands before it fails. Every message is of the extended protocol, which takes exactly one statement.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Sequence

import psycopg
from psycopg import pq
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.pq.abc import PGresult


class Lost(Exception):
    """The connection failed, or is of no more use; the message says why."""


class Overdue(Exception):
    """A statement did not end when it was cancelled."""


class Connection:
    """Connects by a connection string of libpq; raises `Lost` when that fails.

    `may_cancel` and `may_give_up` say what happens to statements that are overdue; both are off in some tests only.
    """

    def __init__(self, string: str, may_cancel: bool = True, may_give_up: bool = True) -> None:
        self._may_cancel, self._may_give_up = may_cancel, may_give_up
        self._pq = pq.PGconn.connect(string.encode())
        if self._pq.status != ConnStatus.OK:
            message = one_line(self._pq.get_error_message())
            self._pq.finish()
            raise Lost(message)
        self._pq.nonblocking = 1
        self._pq.enter_pipeline_mode()
        self._poll = select.poll()
        self.start_clock(0.0, 0.0)

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self._pq.status == ConnStatus.OK

    @property
    def server_version(self) -> int:
        """As the server counts: 150018 is 15.18."""
        return self._pq.server_version

    def close(self) -> None:
        """Ends it, whatever runs on it."""
        self._pq.finish()

    def start_clock(self, soft_seconds: float, hard_seconds: float) -> None:
        """From now on the server has `soft_seconds`: it is cancelled soon after, and given up before `hard_seconds`."""
        spare = hard_seconds - soft_seconds
        self.soft_at = time.monotonic() + soft_seconds
        self._cancel_at, self._give_up_at = self.soft_at + 0.2 * spare, self.soft_at + 0.7 * spare
        self.cancelled = False

    def send(self, *groups: Sequence[bytes], parameters: Sequence[bytes] | None = None) -> None:
        """Sends commands, with a synchronisation behind each group. `parameters` are those of every command."""
        try:
            for group in groups:
                for command in group:
                    self._pq.send_query_params(command, parameters)
                self._pq.pipeline_sync()
            while self._pq.flush():
                self._wait(select.POLLIN | select.POLLOUT)
                self._pq.consume_input()
        except psycopg.Error as error:
            raise Lost(one_line(str(error))) from None

    def next(self) -> PGresult | None:
        """The next part of the answers; None behind the last part of each.

        Raises `Lost`, and `Overdue` when the clock has run out and the server goes on.
        """
        try:
            while self._pq.is_busy():
                self._wait(select.POLLIN)
                self._pq.consume_input()
            part = self._pq.get_result()
        except psycopg.Error as error:
            raise Lost(one_line(str(error))) from None
        if part is None and not self.is_open:
            raise Lost(one_line(self._pq.get_error_message()))
        return part

    def expect_parts(self, rows: int) -> None:
        """Has the rows of the answer that comes next delivered in parts of at most `rows`."""
        self._pq.set_chunked_rows_mode(rows)

    def skip_groups(self, count: int) -> PGresult | None:
        """Passes over all answers up to the end of `count` groups; returns the first error among them."""
        error = None
        while count:
            part = self.next()
            if part is not None and part.status == ExecStatus.FATAL_ERROR:
                error = error or part
            count -= part is not None and part.status == ExecStatus.PIPELINE_SYNC
        return error

    def ask(self, query: str, *parameters: str) -> list[tuple[str, ...]]:
        """The rows of a query of our own, as text, empty for NULL. Raises `Lost` when it fails."""
        self.send([query.encode()], parameters=[value.encode() for value in parameters])
        rows: list[tuple[str, ...]] = []
        while (part := self.next()) is not None:
            if part.status != ExecStatus.TUPLES_OK:
                message = one_line(part.get_error_message())
                with contextlib.suppress(Lost):  # a server that ends the session sends nothing behind that
                    self.skip_groups(1)
                raise Lost(message)
            for row in range(part.ntuples):
                rows.append(tuple((part.get_value(row, i) or b"").decode() for i in range(part.nfields)))
        self.skip_groups(1)
        return rows

    def cancel(self) -> None:
        """Asks the server over a second connection to end what runs. Without effect where that fails."""
        self.cancelled = True
        with contextlib.suppress(psycopg.Error):
            self._pq.cancel_conn().blocking()

    def _wait(self, events: int) -> None:
        now = time.monotonic()
        if self._may_give_up and now > self._give_up_at:
            raise Overdue
        if self._may_cancel and not self.cancelled and now > self._cancel_at:
            self.cancel()
        until = self._cancel_at if now <= self._cancel_at else self._give_up_at
        self._poll.register(self._pq.socket, events)
        # Past both times only in tests, where the process is then killed from outside.
        self._poll.poll(max(until - now, 0.01) * 1000 + 1)


def one_line(text: str) -> str:
    """A message as one line of bounded length."""
    return " ".join(text.split())[:500]

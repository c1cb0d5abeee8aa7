"""A thread that interrupts what runs beyond its time, for engines that do not look at a clock themselves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_AGAIN_SECONDS = 0.05
_STACK = 1 << 18  # bytes of the process's memory, of which the usual 8 MB would be too many for so small a thread


class Watchdog:
    """Interrupts what has run for `seconds`, and again until it ends: an engine may miss a call that comes too early.

    The thread is not woken when something starts or ends, only when time may be up: a start and an end cost a
    microsecond each.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._interrupt: Callable[[], None] | None = None
        self._deadline = 0.0
        self._asleep = self._closed = False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        usual = threading.stack_size(_STACK)
        self._thread.start()
        threading.stack_size(usual)

    def start(self, interrupt: Callable[[], None]) -> None:
        """From now on time is measured; `interrupt` is called in another thread, at the earliest after `seconds`."""
        with self._condition:
            self._interrupt = interrupt
            self._deadline = time.monotonic() + self._seconds
            if self._asleep:
                self._condition.notify()

    def stop(self) -> None:
        """After this `interrupt` is not called any more."""
        with self._condition:
            self._interrupt = None

    def close(self) -> None:
        """Ends the thread."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join()

    def _watch(self) -> None:
        with self._condition:
            while not self._closed:
                if self._interrupt is None:
                    self._asleep = True
                    self._condition.wait()
                    self._asleep = False
                elif (left := self._deadline - time.monotonic()) > 0:
                    self._condition.wait(left)
                else:
                    self._interrupt()
                    self._condition.wait(_AGAIN_SECONDS)

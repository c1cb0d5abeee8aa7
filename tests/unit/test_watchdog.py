"""The watchdog interrupts what runs too long, again and again, and nothing else."""

from __future__ import annotations

import threading
import time

from spftsql.sandbox.watchdog import Watchdog


class Work:
    """Something that can be interrupted; it listens from its `deaf`th interruption on."""

    def __init__(self, deaf: int = 0) -> None:
        self._deaf, self.interruptions, self._over = deaf, 0, threading.Event()

    def interrupt(self) -> None:
        self.interruptions += 1
        if self.interruptions > self._deaf:
            self._over.set()

    def run(self, seconds: float) -> bool:
        """Whether it ran to its end."""
        return not self._over.wait(seconds)


def test_what_runs_too_long_is_interrupted_until_it_listens() -> None:
    watchdog = Watchdog(0.1)
    for deaf in (0, 3):
        work = Work(deaf)
        started = time.monotonic()
        watchdog.start(work.interrupt)
        assert not work.run(20)
        watchdog.stop()
        assert time.monotonic() - started >= 0.1
        assert work.interruptions > deaf
    watchdog.close()


def test_what_ends_in_time_is_left_alone() -> None:
    watchdog = Watchdog(0.5)
    works = [Work() for _ in range(30)]
    for work in works:  # together they last longer than one may
        watchdog.start(work.interrupt)
        assert work.run(0.02)
        watchdog.stop()
    time.sleep(0.6)
    assert [work.interruptions for work in works] == [0] * len(works)
    late = Work()
    watchdog.start(late.interrupt)  # it was asleep by now
    assert not late.run(20)
    watchdog.close()


def test_close_ends_the_thread() -> None:
    before = threading.active_count()
    watchdog = Watchdog(60)
    watchdog.start(lambda: None)
    assert threading.active_count() == before + 1
    watchdog.close()
    assert threading.active_count() == before

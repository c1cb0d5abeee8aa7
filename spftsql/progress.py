"""Progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

Advance = Callable[[int, int], None]  # (done, total)
_LINE_EVERY_S = 60.0


class Reporter:
    """Tells a person what a run is doing: one bar per stage, or one line per stage and minute without a terminal."""

    def __init__(self, console: Console | None = None, every_s: float = _LINE_EVERY_S) -> None:
        """Reports on `console` (default: standard error)."""
        self.console, self._every_s = console or Console(stderr=True), every_s

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def task(self, title: str, unit: str = "") -> Iterator[Advance]:
        """A bar for one stage; the yielded function takes (done, total), counted in `unit`s."""
        begin = time.monotonic()
        if self.console.is_terminal:
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                SpinnerColumn,
                TextColumn,
                TimeElapsedColumn,
            )

            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            with Progress(*columns, TimeElapsedColumn(), console=self.console, transient=True) as bars:
                bar = bars.add_task(title, total=None)
                yield lambda done, total: bars.update(bar, completed=done, total=total)
        else:
            pace, over = Pace(begin), threading.Event()

            def tell() -> None:
                while not over.wait(self._every_s):
                    self.say(f"  {title}: {pace.line(time.monotonic(), unit)}")

            thread = threading.Thread(target=tell, daemon=True, name="progress")
            thread.start()
            try:
                yield lambda done, total: pace.advance(time.monotonic(), done, total)
            finally:
                over.set()
                thread.join()
        self.say(f"  {title} [dim]{time.monotonic() - begin:.1f} s[/dim]")


class Pace:
    """How far something is, how fast it goes, and whether it stands still. Times are seconds on one clock."""

    def __init__(self, begin: float) -> None:
        self._begin = self._moved = begin
        self._first: tuple[float, int] | None = None  # what was there at first was not done now
        self._done = self._total = 0
        self._told = (begin, 0)  # when a line was last asked for, and what was done by then

    def advance(self, now: float, done: int, total: int) -> None:
        """Takes note of (done, total)."""
        if self._first is None:
            self._first = now, done
            self._told = now, done
        if done != self._done:
            self._moved = now
        self._done, self._total = done, total

    def line(self, now: float, unit: str = "") -> str:
        """Where it stands: what is done, how fast since the last line, how long it will take; or that nothing moves."""
        what = f" {unit}" if unit else ""
        if self._first is None or not self._total:
            return f"nothing done after {_time(now - self._begin)}: workers start, or wait for room (`ray status`)"
        then, before = self._told
        self._told = now, self._done
        share = f"{self._done} of {self._total}{what} ({self._done / self._total:.0%})"
        if self._done >= self._total:
            return f"{share}, ending"
        if self._done == before:
            where = "workers start, or wait for room" if self._done == self._first[1] else "its workers may be stuck"
            return f"{share}, nothing new for {_time(now - self._moved)}: {where} (`spftsql status`, `ray status`)"
        rate = (self._done - before) / max(now - then, 1e-9)
        return f"{share}, {rate:.3g}{what} a second, about {_time((self._total - self._done) / rate)} left"


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"

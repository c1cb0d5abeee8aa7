"""Progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

Advance = Callable[[int, int], None]  # (done, total)
_LINE_EVERY_S = 60.0


class Reporter:
    """Tells a person what a run is doing: one bar per stage, or one line per stage and minute without a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        """Reports on `console` (default: standard error)."""
        self.console = console or Console(stderr=True)

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def task(self, title: str) -> Iterator[Advance]:
        """A bar for one stage; the yielded function takes (done, total)."""
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
            last = begin

            def advance(done: int, total: int) -> None:
                nonlocal last
                if time.monotonic() - last > _LINE_EVERY_S:
                    last = time.monotonic()
                    self.say(f"  {title}: {done} of {total}")

            yield advance
        self.say(f"  {title} [dim]{time.monotonic() - begin:.1f} s[/dim]")

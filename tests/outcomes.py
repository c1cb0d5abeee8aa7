"""What comes of the statements of a corpus (`tests.hostile`), one after another in one sandbox."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from pathlib import Path

from spftsql.config import SandboxConfig
from spftsql.errors import Fault
from spftsql.sandbox.execute import Sandbox
from spftsql.sandbox.result import Execution
from tests.hostile import Hostile, contents, read_corpus, timed


class Peak:
    """The most memory that the children of a sandbox have taken since it was last asked, in MiB."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox, self._most, self._ended = sandbox, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _look(self) -> None:
        try:
            status = Path(f"/proc/{self._sandbox.pid}/status").read_text()
        except OSError:
            return
        lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
        self._most = max(self._most, *(int(line[1]) / 1024 for line in lines), 0.0)

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self._look()

    def take(self) -> float:
        self._look()
        most, self._most = self._most, 0.0
        return most

    def close(self) -> None:
        self._ended.set()
        self._thread.join()


@dataclass(frozen=True)
class Outcome:
    """What a hostile statement came to. `changed` are the files that it made, removed or altered."""

    case: Hostile
    run: Execution | Fault
    seconds: float
    peak_mib: float
    changed: tuple[str, ...]

    @property
    def kind(self) -> str:
        if isinstance(self.run, Fault):
            return "fault"
        return "refused" if self.run.reason.startswith("refused") else self.run.status

    def __str__(self) -> str:
        reason = self.run.reason if isinstance(self.run, Execution) else str(self.run)
        head = f"{self.case.family}: {self.kind} ({reason[:80]}) after {self.seconds:.2f} s, {self.peak_mib:.0f} MiB"
        return f"{head}, changed {self.changed}: {self.case.sql[:80]!r}"


def run_corpus(engine: str, database: Path, config: SandboxConfig, here: Path) -> list[Outcome]:
    """Every statement of the corpus about the file `database`, executed with `here` as working folder."""
    found = []
    with contextlib.chdir(here), Sandbox(config) as sandbox, contextlib.closing(Peak(sandbox)) as peak:
        for case in read_corpus(engine, database.parent):
            before = contents(database.parent)
            run, seconds = timed(sandbox, database, case.sql, 2 * config.hard_seconds)
            changed = dict(before.items() ^ contents(database.parent).items())
            found.append(Outcome(case, run, seconds, peak.take(), (*changed, *contents(here))))
    return found

"""What the benchmarks share: the machine in words, runs side by side in turns, and ratios with their spread."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ratio:
    """The median of the ratios of paired runs, with the smallest and the largest."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Ratios of runs that were made in turns, pair by pair, because a machine's speed drifts."""
    ratios = [one / other for one, other in zip(numerators, denominators, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def in_turns(repeats: int, *runs: Callable[[], float]) -> list[list[float]]:
    """Calls the runs one after another, `repeats` times; each returns its figure (such as its own seconds)."""
    figures: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for column, run in zip(figures, runs, strict=True):
            column.append(run())
    return figures


def seconds(work: Callable[[], object]) -> float:
    """The wall-clock seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def machine() -> str:
    """Processor, cores, memory and load, for the head of a table."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    load = os.getloadavg()[0]
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, Python {platform.python_version()}, load {load:.1f}"


def peak_mib(pid: int) -> float:
    """The largest resident memory that a process has had so far, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} has no memory of its own")


def markdown(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)

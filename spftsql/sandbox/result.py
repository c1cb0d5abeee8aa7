"""What the sandbox says about one statement, and the limits that it holds it to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

RunStatus = Literal["ran", "error", "timeout", "truncated"]
Cell = None | int | float | str | bytes
# What a statement may read: columns by table, in lower case; a table without columns is readable whole.
Granted = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Execution:
    """The outcome of one statement.

    `reason` is empty when it ran; it starts with `refused` when the policy, not the engine, said no. `rows` are the
    first rows where the result was cut (`truncated`), and empty after an error. `elapsed_ms` is the statement's own
    time in the child, or the time until its child was killed.
    """

    status: RunStatus
    reason: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    elapsed_ms: float
    engine: str


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one statement, as they travel to the child (see `SandboxConfig` for their meaning)."""

    soft_seconds: float
    hard_seconds: float
    max_rows: int
    max_bytes: int
    memory_mb: int
    double_quoted_strings: bool

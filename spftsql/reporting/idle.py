"""How much of their time the workers of a run had nothing to do: by stage, and in the whole run."""

from __future__ import annotations

from collections.abc import Iterable

from spftsql.reporting.run_record import RunRecord
from spftsql.usage import Use

HEADER = ("stage", "who", "workers", "busy s", "held s", "loading s", "idle")


def idle_text(uses: Iterable[Use]) -> str:
    """The idle shares of a stage, in a few words."""
    return ", ".join(f"{use.who} {use.idle:.0%}" for use in uses)


def idle_rows(record: RunRecord) -> list[tuple[str, ...]]:
    """A line for every kind of worker in every stage, as `HEADER` says."""
    return [
        (
            stage,
            use.who,
            str(use.workers),
            f"{use.busy_s:.1f}",
            f"{use.wall_s:.1f}",
            f"{use.loading_s:.1f}" if use.loading_s else "",
            f"{use.idle:.0%}",
        )
        for stage, uses in record.uses.items()
        for use in uses
    ]


def idle_line(record: RunRecord) -> str:
    """How idle each kind of worker was over all stages of the run, those included that it has no part in.

    Empty while no stage has said anything.
    """
    seconds = sum(stage.seconds for stage in record.stages if stage.name in record.uses)
    shares = []
    for who in ("engines", "verifiers", "trainers"):
        mine = [use for uses in record.uses.values() for use in uses if use.who == who]
        workers = max((use.workers for use in mine), default=0)
        if workers and seconds:
            shares.append(f"{who} {max(0.0, 1 - sum(use.busy_s for use in mine) / (workers * seconds)):.0%}")
    return f"idle over all stages: {', '.join(shares)}" if shares else ""

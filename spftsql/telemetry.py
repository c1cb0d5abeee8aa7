"""What the loop tells Prometheus, by way of Ray's own exporter: nothing without Ray.

Every process of a session may count; Ray adds the process, the node and the session as labels, and `ray_` before the
name. The endpoint has metrics of its own (`serve.metrics`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """One metric: what it counts, and its labels."""

    kind: Literal["counter", "gauge"]
    about: str
    labels: tuple[str, ...] = ()


METRICS: Mapping[str, Metric] = {
    "spftsql_loop_stage_done": Metric("gauge", "Rows or steps of the stage at work that are done", ("run", "stage")),
    "spftsql_loop_stage_rows": Metric("gauge", "Rows or steps of the stage at work", ("run", "stage")),
    "spftsql_loop_stages": Metric("counter", "Stages that came to their end", ("run", "kind")),
    "spftsql_loop_idle_share": Metric("gauge", "Idle share of a kind of worker in a stage", ("run", "stage", "who")),
    "spftsql_loop_requests": Metric("counter", "Requests that engines have answered"),
    "spftsql_loop_samples": Metric("counter", "Samples that engines have written"),
    "spftsql_loop_tokens": Metric("counter", "Tokens: prompt, cached (found in the prefix cache), written", ("kind",)),
    "spftsql_loop_engine_seconds": Metric("counter", "Seconds of engines: busy, loading", ("kind",)),
    "spftsql_loop_trained_tokens": Metric("counter", "Tokens that were trained on", ("run",)),
    "spftsql_loop_training_steps": Metric("counter", "Steps of trainings", ("run",)),
    "spftsql_verifications": Metric("counter", "Verdicts of the verifier pool, by status", ("status",)),
    "spftsql_verifier_seconds": Metric("counter", "Seconds in which verifiers were at work"),
    "spftsql_verifier_faults": Metric("counter", "Statements that could not be executed for our reasons"),
}
_made: dict[str, Any] = {}


def count(name: str, by: float = 1.0, **labels: str) -> None:
    """Adds to a counter of `METRICS`; nothing where this process has no Ray session, or `by` is 0."""
    metric = _metric(name) if by > 0 else None
    if metric is not None:
        metric.inc(by, tags=labels)


def gauge(name: str, value: float, **labels: str) -> None:
    """Sets a gauge of `METRICS`; nothing where this process has no Ray session."""
    metric = _metric(name)
    if metric is not None:
        metric.set(value, tags=labels)


def _metric(name: str) -> Any:
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    if name not in _made:
        from ray.util import metrics

        kind = metrics.Counter if METRICS[name].kind == "counter" else metrics.Gauge
        _made[name] = kind(name, METRICS[name].about, METRICS[name].labels)
    return _made[name]

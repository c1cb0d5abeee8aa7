"""What Prometheus is told. Each ingress replica counts for itself, under its own label `replica`."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The counters of one ingress replica."""

    def __init__(self, replica: str) -> None:
        """`replica` tells this one from the others."""
        self._registry, self._replica = CollectorRegistry(), replica
        self.requests = self._labelled(Counter, "spftsql_requests", "Requests answered", "route", "method", "status")
        self.seconds = self._labelled(Histogram, "spftsql_request_seconds", "Time of a request", "route")
        self.ongoing = self._labelled(Gauge, "spftsql_requests_ongoing", "Requests in progress or in a queue")
        self.refused = self._labelled(Counter, "spftsql_refused", "Requests refused at the door", "reason")
        self.verdicts = self._labelled(Counter, "spftsql_verdicts", "Verdicts of /v1/sql", "database", "status")
        self.repairs = self._labelled(Counter, "spftsql_repairs", "Second attempts", "outcome")
        self.generating = self._labelled(Gauge, "spftsql_generations_ongoing", "Prompts given to the model, unanswered")
        self.executing = self._labelled(Gauge, "spftsql_executions_ongoing", "Calls to the verifiers, unanswered")
        self.first_token = self._labelled(
            Histogram, "spftsql_first_token_seconds", "Time to the first token of a stream", "model"
        )
        self.generation = self._labelled(Histogram, "spftsql_generation_seconds", "The model's time", "model")
        self.execution = self._labelled(Histogram, "spftsql_execution_seconds", "The verifiers' time", "database")
        self.tokens = self._labelled(Counter, "spftsql_tokens", "Tokens, by kind: prompt, cached, completion", "kind")
        self.feedback = self._labelled(Counter, "spftsql_feedback", "Labelled pairs stored", "kind")
        self.faults = self._labelled(Counter, "spftsql_faults", "Failures of ours", "part")

    def _labelled(self, kind: type[MetricWrapperBase], name: str, text: str, *labels: str) -> Labelled:
        options = {"buckets": _SECONDS} if kind is Histogram else {}
        metric = kind(name, text, ("replica", *labels), registry=self._registry, **options)
        return Labelled(metric, self._replica)

    def page(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self._registry)


class Labelled:
    """A metric whose label `replica` is set."""

    def __init__(self, metric: MetricWrapperBase, replica: str) -> None:
        """Takes the metric and the label's value."""
        self._metric, self._replica = metric, replica

    def at(self, *labels: str):  # type: ignore[no-untyped-def]
        """The series with these further labels: a counter, gauge or histogram, as the metric is."""
        return self._metric.labels(self._replica, *labels)

"""The files for Prometheus and Grafana: every metric that they name is one that the code has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

import serve
from spftsql.telemetry import METRICS, count, gauge

FOLDER = Path(serve.__file__).parent


def board() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "grafana-loop.json").read_text())
    return found


def expressions() -> list[str]:
    queries = [variable["query"] for variable in board()["templating"]["list"] if variable["type"] == "query"]
    return [target["expr"] for panel in board()["panels"] for target in panel["targets"]] + queries


def test_every_metric_of_the_loops_dashboard_is_counted_and_shown() -> None:
    exported = {f"ray_{name}{'_total' if metric.kind == 'counter' else ''}" for name, metric in METRICS.items()}
    named = {name for text in expressions() for name in re.findall(r"\b(?:ray_)?spftsql_\w+", text)}
    assert named == exported


def test_labels_of_the_dashboard_are_those_of_the_metrics() -> None:
    for text in expressions():
        for name, labels in re.findall(r"ray_(spftsql_\w+?)(?:_total)?\{(.*?)\}", text):
            assert set(re.findall(r"(\w+)=", labels)) <= set(METRICS[name].labels)
        for labels in re.findall(r"by \((.*?)\)", text):
            names = re.findall(r"ray_(spftsql_\w+?)(?:_total)?\b", text)
            assert all(set(labels.split(", ")) <= set(METRICS[name].labels) for name in names)


def test_every_metric_is_used_in_the_code_with_its_labels() -> None:
    source = "\n".join(path.read_text() for path in Path(FOLDER.parent / "spftsql").rglob("*.py"))
    calls = re.findall(r'(count|gauge)\(\s*"(spftsql_\w+)"', source)
    assert {name for _, name in calls} == set(METRICS)
    assert all(METRICS[name].kind == {"count": "counter", "gauge": "gauge"}[call] for call, name in calls)


def test_without_ray_nothing_is_told_and_nothing_fails() -> None:
    count("spftsql_loop_tokens", 5, kind="written")
    gauge("spftsql_loop_stage_done", 5, run="a", stage="b")


def test_the_scrape_configuration_asks_ray_and_the_endpoint() -> None:
    jobs = {job["job_name"]: job for job in yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["scrape_configs"]}
    assert jobs["ray"]["http_sd_configs"][0]["url"].endswith(":8265/api/prometheus/sd")
    assert jobs["spftsql-endpoint"]["metrics_path"] == "/metrics"
    panels = board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) and len({p["title"] for p in panels}) == len(panels)

"""`spftsql plan RECIPE --simulate`: a forecast for a person."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from spftsql.config import Config
from spftsql.errors import UserError
from spftsql.evaluation.score_report import Section, show_sections
from spftsql.planning.cost_plan import all_stages, model_bytes_of
from spftsql.planning.roofline import Device
from spftsql.planning.sizes import sizes_of
from spftsql.reporting.run_record import RunRecord
from spftsql.simulation.calibration import measured
from spftsql.simulation.forecast import Forecast, at_sizes
from spftsql.simulation.rates import Rates, assumed


def run_simulation(
    config: Config, device: Device | None, calibrated: RunRecord | None, as_json: bool, console: Console
) -> None:
    """Prints the forecasts. Raises `UserError` when there are neither rates of a run nor a device."""
    if calibrated is None and device is None:
        raise UserError(
            "--simulate needs rates: --calibrate RUN takes those of a finished run, --gpus H100 assumes them"
        )
    if calibrated is not None:
        rates = measured(calibrated)
    else:
        assert device is not None
        rates = assumed(config, device)
    plans = all_stages(config, sizes_of(config))
    found = at_sizes(config, plans, rates, model_bytes_of(config))
    if as_json:
        print(
            json.dumps({"calibrated": calibrated is not None, "forecasts": [forecast_tree(f) for f in found]}, indent=1)
        )
        return
    about = (
        f"rates of {calibrated.root}" if calibrated is not None else f"rates assumed of {device.name if device else ''}"
    )
    show_sections([*forecasts_sections(config.name, about, found, rates), *_stage_sections(found)], console)


def forecast_tree(forecast: Forecast) -> dict[str, Any]:
    """A forecast as a plain tree."""
    return asdict(forecast) | {
        "wall_s": forecast.wall_s,
        "shares": forecast.shares,
        "idle": forecast.idle,
        "gpus_idle": forecast.gpus_idle,
        "bottleneck": forecast.bottleneck,
    }


def forecasts_sections(name: str, about: str, forecasts: Sequence[Forecast], rates: Rates) -> list[Section]:
    """By number of GPUs: machines with their wall clock, and what that waits for, and who idles."""
    lines = (
        f"{name}: {about}; {rates.databases} databases; one stage after another, verification within generation",
        "verifiers stay as the recipe has them (verification.workers); of the GPUs as many train as make it shortest",
    )
    clocks = tuple(
        (
            _gpus(f),
            str(f.machines.engines),
            str(f.machines.trainers),
            str(f.machines.verifiers),
            duration(f.wall_s),
            f.bottleneck,
        )
        for f in forecasts
    )
    parts = ("engines", "verifiers", "trainers", "starts", "driver")
    shares = tuple(
        (_gpus(f), *(f"{f.shares[part]:.0%}" for part in parts), f"{f.gpus_idle:.0%}", f"{f.idle['verifiers']:.0%}")
        for f in forecasts
    )
    return [
        Section("", lines, ("GPUs", "engines", "trainers", "verifiers", "wall clock", "waits most for"), clocks),
        Section("waits for", (), ("GPUs", *parts, "idle GPUs", "idle verifiers"), shares),
    ]


def _gpus(forecast: Forecast) -> str:
    return "as it is" if forecast.machines.gpus is None else str(forecast.machines.gpus)


def _stage_sections(forecasts: Sequence[Forecast]) -> list[Section]:
    """Seconds of every stage, by number of GPUs."""
    header = ("stage", *(_gpus(f) for f in forecasts))
    rows = tuple(
        (stages[0].name, *(duration(stage.wall_s) for stage in stages))
        for stages in zip(*(f.stages for f in forecasts), strict=True)
    )
    return [Section("stages", (), header, rows)]


def duration(seconds: float) -> str:
    """Seconds for a person: to the tenth below 100, then minutes, then hours."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"

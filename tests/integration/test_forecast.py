"""A forecast with the rates of one run, beside another that is larger: the wall clock within a fifth."""

from __future__ import annotations

from pathlib import Path

import pytest

from spftsql.planning.cost_plan import model_bytes_of, stages_of
from spftsql.planning.sizes import sizes_of
from spftsql.recipes import resolve
from spftsql.reporting.run_record import RunRecord, read_run
from spftsql.simulation.calibration import measured
from spftsql.simulation.forecast import forecast, machines_of
from tests import loops

LOCAL = {"execution": "local", "generation.engine": "transformers"}
# Long enough for rates to show beside imports, and both find all the pairs that they want.
COMMON = {"sft.steps": "200", "question_model.steps": "200"}
COMMON |= {"vbi.optimization.steps": "null", "vbi.optimization.epochs": "30", "synthesis.candidates": "16"}
SMALLER = {"vbi.train_pairs": "80", "vbi.play_pairs": "30", "vbi.selection_pairs": "25", "selfplay.samples": "2"}
LARGER = {"vbi.train_pairs": "450", "vbi.play_pairs": "180", "vbi.selection_pairs": "120", "selfplay.samples": "5"}
LARGER |= {"synthesis.per_structure": "0"}  # or the demo's templates would not give so many


def took(record: RunRecord) -> float:
    """Seconds from the opening of the run to its end."""
    (opened,) = record.of("opened")
    return float(record.of("finished")[-1]["time"]) - float(opened["time"])


@pytest.mark.integration
@pytest.mark.long
@pytest.mark.timeout(2400)
def test_a_run_foretells_one_with_four_times_the_rows_and_another_n(tmp_path: Path) -> None:
    """On a machine with nothing else on it; both runs are real, and the second is not looked at for the forecast."""
    loops.finish(tmp_path / "small", {**LOCAL, **COMMON, **SMALLER}, tmp_path / "log", timeout=900)
    small = read_run(tmp_path / "small" / "demo")
    overrides = [f"{key}={value}" for key, value in {**loops.SMALL, **LOCAL, **COMMON, **LARGER}.items()]
    config = resolve("demo", overrides)
    plans = list(stages_of(config, sizes_of(config)))
    found = forecast(config, plans, measured(small), machines_of(config), model_bytes_of(config))

    loops.finish(tmp_path / "large", {**LOCAL, **COMMON, **LARGER}, tmp_path / "log", timeout=1400)
    large = read_run(tmp_path / "large" / "demo")
    rows = [sum(stage.samples for stage in record.stages) for record in (small, large)]
    assert rows[1] >= 4 * rows[0]
    actual = {stage.name: stage.seconds for stage in large.stages}
    for stage in found.stages:
        print(f"{stage.name}: {stage.wall_s:.1f} s foretold, {actual.get(stage.name, 0.0):.1f} s in the stage")
    print(f"{found.wall_s:.1f} s foretold, {took(large):.1f} s taken ({rows[0]} and {rows[1]} samples)")
    assert found.wall_s == pytest.approx(took(large), rel=0.2)
    assert found.wall_s > 1.4 * took(small)  # or it would say no more than that runs take as long as others

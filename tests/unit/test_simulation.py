"""The simulation of a pipeline against closed forms, the fit of rates, and forecasts of a run's own recipe."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from spftsql.cli import main
from spftsql.errors import UserError
from spftsql.planning.cost_plan import StagePlan, model_bytes_of, stages_of
from spftsql.planning.roofline import DEVICES
from spftsql.planning.sizes import sizes_of
from spftsql.recipes import resolve
from spftsql.reporting.run_record import read_run
from spftsql.simulation.calibration import fit, measured, split_gaps
from spftsql.simulation.forecast import Machines, at_sizes, forecast, machines_of, units_of
from spftsql.simulation.pipeline import Part, simulate
from spftsql.simulation.rates import Rates, assumed
from tests.made_run import make_run


def units(count: int, parts: int, part: Part) -> list[list[Part]]:
    return [[part] * parts for _ in range(count)]


def test_fast_verifiers_are_hidden_but_for_the_last_part() -> None:
    found = simulate(units(6, 4, Part(10.0, 2, 1.5)), engines=2, verifiers=2, start_s=7.0)
    assert found.generated_s == 7.0 + 6 * 4 * 10.0 / 2
    assert found.wall_s == pytest.approx(found.generated_s + 2 * 1.5)  # two engines leave their last parts at once
    assert found.engines_busy_s == 240.0 and found.verifiers_busy_s == 24 * 2 * 1.5


@pytest.mark.parametrize("verifiers", [1, 2, 4])
def test_slow_verifiers_bound_the_stage_from_the_first_part_on(verifiers: int) -> None:
    found = simulate(units(1, 16, Part(1.0, verifiers, 20.0)), engines=1, verifiers=verifiers)
    assert found.wall_s == pytest.approx(1.0 + 16 * 20.0)
    assert found.generated_s == 16.0


def test_engines_share_units_and_none_waits_for_verifiers() -> None:
    one, many = (simulate(units(64, 2, Part(3.0, 1, 0.5)), engines=n, verifiers=8) for n in (1, 16))
    assert one.generated_s == 64 * 6.0 and many.generated_s == 4 * 6.0
    assert one.engines_busy_s == many.engines_busy_s
    uneven = [[Part(9.0)], *units(9, 1, Part(1.0))]
    assert simulate(uneven, engines=2, verifiers=1).wall_s == 9.0  # longest first: the others fit beside it
    assert simulate([], engines=1, verifiers=1, start_s=5.0).wall_s == 0.0


def test_a_stage_without_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        simulate([], engines=0, verifiers=1)


def test_prices_are_found_again_and_never_negative() -> None:
    amounts = [(100, 4000, 9000), (250, 1000, 30000), (40, 9000, 1500), (90, 2000, 2500)]
    true = (0.02, 0.0001, 0.0007)
    seconds = [sum(price * amount for price, amount in zip(true, row, strict=True)) for row in amounts]
    assert fit(amounts, seconds) == pytest.approx(true, rel=1e-6)
    odd = fit([(10, 10, 10), (20, 10, 30), (30, 10, 20)], [1.0, 2.0, 3.0])
    assert min(odd) >= 0 and odd[0] == pytest.approx(0.1)


def test_a_first_use_is_not_multiplied_by_the_rows_of_its_stage() -> None:
    rows = {"a": 100, "b": 2000, "c": 500, "d": 0}
    row_s, beside = split_gaps({name: 0.2 + 0.001 * count for name, count in rows.items()}, rows)
    assert row_s == pytest.approx(0.001) and beside == pytest.approx(dict.fromkeys(rows, 0.2))
    gaps = {"a": 4.0, "b": 0.1, "c": 0.1, "d": 2.0}  # the more rows, the less: nothing of it is for rows
    row_s, beside = split_gaps(gaps, rows)
    assert row_s == 0 and beside == gaps
    assert split_gaps({}, {}) == (0.0, {})


RATES = Rates(pass_s=0.0, read_s=1e-5, written_s=1e-3, statement_s=1e-3, trained_s=1e-4, starts={}, databases=64)
PLANS = [
    StagePlan("generate-round-1", requests=4096, samples=4096, read=1e5, written=2e5),
    StagePlan("verify-round-1", executions=4096),
    StagePlan("train-play-1", steps=100, trained=1e6),
]


def test_a_forecast_is_the_work_over_the_workers() -> None:
    config = resolve("demo", ["generation.batch_size=64", "selfplay.optimization.batch_size=16"])
    one = forecast(config, PLANS, RATES, Machines(None, 1, 4, 1), 0.0)
    generate, verify, train = one.stages
    assert generate.engines_s == pytest.approx(201.0) and train.trainers_s == pytest.approx(100.0)
    again = forecast(config, PLANS[:1], replace(RATES, driver_s=0.01), Machines(None, 1, 4, 1), 0.0)
    assert again.stages[0].gap_s == pytest.approx(40.96) and generate.gap_s == 0
    assert verify.wall_s == 0 and generate.verifiers_busy_s == pytest.approx(4.096)
    assert generate.verifiers_s < 0.1 and one.bottleneck == "engines"
    assert one.idle["engines"] == pytest.approx(1 - 201 / one.wall_s)
    eight = forecast(config, PLANS, RATES, Machines(8, 8, 4, 8), 0.0)
    assert eight.stages[0].engines_s == pytest.approx(201 / 8, rel=0.02)
    assert eight.stages[2].trainers_s == pytest.approx(100 / 8)


def test_the_bottleneck_moves() -> None:
    config = resolve("demo", ["generation.batch_size=64"])
    slow = replace(RATES, statement_s=0.05)
    found = [forecast(config, PLANS[:2], slow, Machines(n, n, 4, 1), 0.0) for n in (1, 64)]
    assert [f.bottleneck for f in found] == ["engines", "verifiers"]
    assert found[1].wall_s == pytest.approx(4096 * 0.05 / 4, rel=0.1)
    assert found[1].idle["engines"] > 0.9 > found[1].idle["verifiers"]


def test_no_more_trainers_than_rows_and_gradients_cross_machines() -> None:
    config = resolve("demo", ["vbi.optimization.batch_size=16"])
    assert machines_of(config, 512).trainers == 16 and machines_of(config, 512).engines == 512
    within, across = (forecast(config, PLANS[2:], RATES, Machines(n, n, 1, n), 5e9) for n in (8, 16))
    assert within.wall_s == pytest.approx(100 / 8)
    assert across.wall_s == pytest.approx(100 / 16 + 100 * 2 * 5e9 / 50e9)


def test_units_are_those_of_the_stage() -> None:
    config = resolve("demo", ["generation.batch_size=100"])
    spans = units_of(StagePlan("generate-x", requests=1200, samples=2400, models=3), config, 2, 5)
    assert sum(span.stop - span.start for span in spans) == 1200 and sum(span.samples for span in spans) == 2400
    assert {span.model for span in spans} == {"0", "1", "2"}


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """`spftsql plan` with these arguments: exit code, what it prints, and what it complains of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["spftsql", "plan", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_a_run_forecasts_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A made run whose stages say how long their workers were busy; the forecast of its recipe has their seconds."""
    root = make_run(tmp_path)
    record = read_run(root)
    assert record.config is not None
    with pytest.raises(UserError, match="how busy"):
        measured(record)
    with (root / "events.jsonl").open("a") as file:
        for stage in record.stages:
            base = {
                "time": record.now,
                "event": "use",
                "stage": stage.name,
                "workers": 2 if stage.kind == "train" else 1,
            }
            if stage.kind == "generate":
                lines = [{"who": "engines", "busy_s": 40.0, "wall_s": 50.0, "rows": stage.requests, "steps": 90,
                          "read": 900, "written": stage.tokens},
                         {"who": "verifiers", "busy_s": 3.0, "wall_s": 50.0, "rows": stage.samples}]  # fmt: skip
            else:
                lines = [{"who": "trainers", "busy_s": 60.0, "wall_s": 35.0, "rows": 50, "written": stage.trained}]
            if stage.kind != "verify":
                file.writelines(json.dumps(base | line) + "\n" for line in lines)
    record = read_run(root)
    stages = tuple(
        replace(stage, seconds={"generate": 50.0, "train": 35.0, "verify": 0.5}[stage.kind]) for stage in record.stages
    )
    record = replace(record, stages=stages)
    rates = measured(record)
    config = record.config
    assert config is not None
    found = at_sizes(config, list(stages_of(config, sizes_of(config))), rates, model_bytes_of(config))
    by_name = {stage.name: stage for stage in found[0].stages}
    for name in ("generate-round-1", "generate-play-1", "train-round-1", "train-play-1"):
        stage = by_name[name]
        assert stage.wall_s - stage.gap_s == pytest.approx(50.0 if name.startswith("generate") else 35.0, rel=0.02)
        assert stage.engines_busy_s + stage.trainers_busy_s == pytest.approx(
            40.0 if name.startswith("generate") else 60.0, rel=0.02
        )
    assert found[1].wall_s >= found[3].wall_s

    code, out, _ = command(capsys, "--actual", root, "--calibrate", root, "--json")
    tree = json.loads(out)
    assert code == 0 and [f["machines"]["gpus"] for f in tree["forecasts"]] == [None, 1, 8, 64, 512]


def test_without_rates_the_command_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = command(capsys, "demo", "--simulate")
    assert code == 2 and "--calibrate RUN" in err and len(err.splitlines()) == 1


def test_folds_are_simulated_and_a_stage_without_requests_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = command(
        capsys, "demo", "--set", "gate.folds=2", "--set", "synthesis.recombination=1", "--simulate", "--gpus", "H100",
        "--json",
    )  # fmt: skip
    assert code == 0
    stages = {stage["name"]: stage for stage in json.loads(out)["forecasts"][0]["stages"]}
    assert {f"train-round-1{part}" for part in ("", "-fold-1", "-fold-2")} <= stages.keys()
    assert stages["generate-questions-1"]["start_s"] == 0 < stages["generate-round-1-fold-1"]["start_s"]


def test_more_gpus_take_less_time_until_starts_are_left() -> None:
    config = resolve("spider-qwen2.5-coder-7b")
    rates = assumed(config, DEVICES["H100"])
    found = at_sizes(config, list(stages_of(config, sizes_of(config))), rates, model_bytes_of(config))
    walls = [f.wall_s for f in found[1:]]
    assert walls[0] > 3 * walls[1] and walls == sorted(walls, reverse=True)
    assert found[1].bottleneck == "trainers" and found[4].bottleneck == "starts"
    assert found[1].gpus_idle < 0.3 < 0.9 < found[4].gpus_idle

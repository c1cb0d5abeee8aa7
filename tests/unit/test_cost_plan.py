"""`spftsql plan`: the roofline against figures worked out by hand, the stages against a run, the command."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from spftsql.cli import main
from spftsql.errors import UserError
from spftsql.planning.cost_plan import Sizes, StagePlan, plan_costs, sizes_of, stages_of
from spftsql.planning.report import compared
from spftsql.planning.roofline import DEVICES, decode_rate, parse_gpus, prefill_rate, training_rate
from spftsql.planning.shapes import KNOWN
from spftsql.recipes import resolve
from spftsql.reporting.run_record import read_run
from tests.made_run import make_run

SEVEN = KNOWN["Qwen/Qwen2.5-Coder-7B-Instruct"]


@pytest.mark.parametrize(
    ("gpu", "apart", "together", "prefill", "alone", "full", "adapters"),
    [  # tokens per second of a 7.62 B model, prompts of 1,500 tokens and answers of 80, 256 at a time
        ("A100", 13_200, 20_500, 20_500, 131, 6_800, 10_200),
        ("H100", 22_100, 51_100, 64_900, 220, 21_600, 32_400),
        ("H200", 31_700, 64_900, 64_900, 315, 21_600, 32_400),
    ],
)
def test_the_roofline(gpu: str, apart: int, together: int, prefill: int, alone: int, full: int, adapters: int) -> None:
    device = DEVICES[gpu]
    found = (
        decode_rate(SEVEN, device, 1580),
        decode_rate(SEVEN, device, 1580, shared=1500),
        prefill_rate(SEVEN, device),
        decode_rate(SEVEN, device, 1580, sequences=1),
        training_rate(SEVEN, device, adapters=False),
        training_rate(SEVEN, device, adapters=True),
    )
    assert found == pytest.approx((apart, together, prefill, alone, full, adapters), rel=0.03)


def test_gpus_are_read_and_unknown_ones_refused() -> None:
    assert parse_gpus("8xH100") == (8, DEVICES["H100"])
    assert parse_gpus("a100") == (1, DEVICES["A100"])
    for text in ("8xTPU", "x", "0xH100", "8 H100"):
        with pytest.raises(UserError, match="known kinds: A100"):
            parse_gpus(text)


@cache
def demo_sizes() -> Sizes:
    return sizes_of(resolve("demo"))


def stages(*overrides: str) -> dict[str, StagePlan]:
    return {stage.name: stage for stage in stages_of(resolve("demo", overrides), demo_sizes())}


def test_the_stages_are_those_of_the_loop(tmp_path: Path) -> None:
    """What the loop does is known exactly where it does not depend on what models write."""
    found = stages("vbi.rounds=1", "selfplay.iterations=1")
    assert list(found) == [
        *("verify-labels", "train-labels", "verify-sql-1", "generate-questions-1", "train-round-1"),
        *("generate-round-1", "verify-round-1", "train-play-1", "generate-play-1", "verify-play-1"),
    ]
    assert found["verify-labels"].executions == 250  # 150 labels, 100 gate questions
    # 100 gate, 252 test, 150 selection and 250 play questions, for the first model, the new one and the control
    assert found["verify-round-1"].executions == 3 * 752
    assert found["verify-play-1"].executions == 2 * 752
    assert stages("selfplay.samples=4")["verify-play-1"].executions == 2 * (502 + 1000)


def test_more_work_costs_more() -> None:
    few, many = stages("sft.steps=100"), stages("sft.steps=1000")
    assert many["train-labels"].trained > 3 * few["train-labels"].trained
    apart = stages("training.sharing=none", "prompt.schema_text=full")["train-play-1"].trained
    together = stages("prompt.schema_text=full")["train-play-1"].trained
    assert together < 0.35 * apart  # prompts that are shared are computed once
    assert "verify-votes-1" not in few and "verify-votes-1" in stages("synthesis.filter=round_trip")
    assert "generate-play-1" not in stages("vbi.rounds=0")


def test_a_pool_is_trained_on_for_each_opponent_and_folds_are_loops_of_their_own() -> None:
    one = stages("selfplay.baselines=[]", "selfplay.iterations=2")
    pool = stages("selfplay.baselines=[]", "selfplay.iterations=2", "selfplay.opponent=pool")
    assert pool["train-play-1"].trained == pytest.approx(2 * one["train-play-1"].trained, rel=0.05)  # sft and vbi-1
    assert pool["train-play-2"].trained == pytest.approx(3 * one["train-play-2"].trained, rel=0.05)
    assert pool["generate-play-1"] == one["generate-play-1"]
    plan = plan_costs(resolve("demo", ["gate.folds=5"]), 0, None, None)
    names = [stage.plan.name for stage in plan.stages]
    assert len(names) == 1 + 6 * 9 and names[0] == "train-labels-fold-1" and names[-1] == "verify-play-1"
    fold = next(stage.plan for stage in plan.stages if stage.plan.name == "verify-round-1-fold-5")
    assert fold.executions == 2 * (30 + 150 + 250)  # without the control


def test_near_misses_are_executed_and_trained_on_and_parts_are_smaller() -> None:
    own = ("selfplay.baselines=[sft]", "selfplay.iterations=2")
    plain, near = stages(*own), stages(*own, "selfplay.near_misses=3")
    assert near["verify-near-misses"].executions == 250 * 3 * 4 and "verify-near-misses" not in plain
    assert near["train-play-1"].trained == pytest.approx(4 * plain["train-play-1"].trained, rel=0.05)
    assert near["generate-play-1"] == plain["generate-play-1"]
    parts = stages(*own, "selfplay.questions=parts")
    assert parts["train-play-2"].trained == pytest.approx(plain["train-play-2"].trained / 2, rel=0.1)
    assert parts["generate-play-2"] == plain["generate-play-2"]
    assert "verify-near-misses" not in stages("selfplay.near_misses=3", "selfplay.iterations=0")


def test_times_and_money_follow_from_counts() -> None:
    config = resolve("spider-qwen2.5-coder-7b")
    one = plan_costs(config, 1, DEVICES["H100"], 2.0)
    assert one.sizes.assumed and one.money == pytest.approx(2.0 * one.hours)
    assert sum(stage.money or 0 for stage in one.stages) == pytest.approx(one.money)
    slower = plan_costs(config, 1, DEVICES["A100"], 2.0)
    assert 2 < slower.gpu_hours / one.gpu_hours < 4
    idle = plan_costs(config, 8, DEVICES["H100"], 2.0)
    assert idle.money == pytest.approx(8 * 2.0 * idle.hours)
    assert any("of 8 GPUs the recipe uses 1 in generation" in note for note in idle.notes)
    assert plan_costs(config, 0, None, None).gpu_hours == 0


def test_planned_beside_actual(tmp_path: Path) -> None:
    record = read_run(make_run(tmp_path, 20, 8))
    assert record.config is not None
    rows = {row.name: row for row in compared(plan_costs(record.config, 0, None, None).stages, record)}
    assert rows["verify-round-1"].actual is not None and rows["verify-round-1"].planned is not None
    assert rows["verify-round-1"].actual.executions == 3 * 4 * 20  # three candidates, four sets
    assert rows["train-labels"].actual is not None and rows["train-labels"].actual.trained == 2 * 50 * 1000
    assert rows["verify-sql-1"].actual is None  # not in this run


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["spftsql", "plan", *map(str, arguments)])
            with pytest.raises(SystemExit) as ended:
                main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    code, out, _ = run("spider-qwen2.5-coder-7b", "--gpus", "8xH100", "--price", "2.5")
    assert code == 0 and "GPUs held at 2.5 an hour" in out and "published numbers" in out
    code, out, _ = run("demo", "--json")
    tree = json.loads(out)
    assert code == 0 and tree["stages"][0]["plan"]["name"] == "verify-labels" and tree["money"] is None
    root = make_run(tmp_path, 8, 4)
    code, out, _ = run("--actual", root)
    assert code == 0 and "planned → actual" in out
    for arguments, complaint in (
        ((), "name a recipe, or a run with --actual"),
        (("demo", "--price", 2), "it goes with --gpus"),
        (("demo", "--gpus", "many"), "give a number and a kind"),
        (("--actual", tmp_path), "is no run directory"),
    ):
        code, _, error = run(*arguments)
        assert code == 2 and complaint in " ".join(error.split())

"""`spftsql plan`: the roofline against figures worked out by hand, the stages against a run, the command."""

from __future__ import annotations

import io
import json
import sqlite3
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from rich.console import Console

from spftsql.cli import main
from spftsql.errors import UserError
from spftsql.evaluation.benchmarks import load_benchmark
from spftsql.evaluation.score_report import show_sections
from spftsql.planning.cost_plan import StagePlan, plan_costs, stages_of
from spftsql.planning.report import compared, comparison_section, total
from spftsql.planning.roofline import DEVICES, decode_rate, parse_gpus, prefill_rate, training_rate
from spftsql.planning.shapes import KNOWN
from spftsql.planning.sizes import Sizes, sizes_of
from spftsql.recipes import resolve
from spftsql.records import Verdict, write_records
from spftsql.reporting.run_record import read_run
from spftsql.runs import Run
from spftsql.serving.feedback import store_feedback
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
    for text in ("8xTPU", "x", "0xH100", "00xH100", "8 H100", "9" * 5000 + "xH100"):
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
    small = stages("vbi.train_pairs=40", "vbi.play_pairs=20", "vbi.selection_pairs=10")
    assert small["verify-sql-1"].executions == 2 * 512 * 1.5  # of two windows one is ahead; half as many checks
    assert stages("selfplay.samples=4")["verify-play-1"].executions == 2 * (502 + 1000)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A recipe without a benchmark: a database of one's own and a model."""
    recipe = tmp_path / "own.yaml"
    recipe.write_text(
        f"name: own\ndata: {{benchmark: none, databases: [{{name: s, url: {tmp_path}/s.sqlite}}]}}\n"
        "model: {path: Qwen/Qwen2.5-Coder-1.5B-Instruct}\n"
    )
    return recipe


def test_without_labels_nothing_is_trained_on_or_asked_about_them(own: Path) -> None:
    config = resolve(str(own), ["gate.folds=2"])
    sizes = sizes_of(config)
    assert (sizes.train, sizes.gate, sizes.test) == (0, 0, 0)
    found = {priced.plan.name: priced.plan for priced in plan_costs(config, 0, None, None).stages}
    assert list(found) == [
        *("verify-sql-1", "generate-questions-1", "train-round-1", "generate-round-1", "verify-round-1"),
        *("train-play-1", "generate-play-1", "verify-play-1"),
    ]
    assert found["verify-round-1"].executions == 2 * (300 + 1000)  # the base and its first round, no control
    twice = {s.name: s for s in stages_of(resolve(str(own), ["selfplay.replay=1"]), sizes)}
    assert twice["train-play-1"] == found["train-play-1"]  # there is nothing to replay
    many = {s.name: s for s in stages_of(resolve(str(own), ["synthesis.recombination=1"]), sizes)}
    assert many == found  # nor to make pairs of


def test_questions_without_a_database_are_not_counted_where_others_have_one(tmp_path: Path) -> None:
    for part, names in (("train", ["here"] * 6 + ["gone"] * 4), ("test", ["here", "gone"])):
        rows = [
            json.dumps({"db_id": name, "question": f"How many {i}?", "sql": "SELECT 1"}) for i, name in enumerate(names)
        ]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(rows))
    config = resolve("demo", ["data.benchmark=jsonl", f"data.root={tmp_path}", "data.gate_share=0"])
    assert (sizes_of(config).train, sizes_of(config).test) == (10, 2)  # no database is here: all may be where it runs
    with sqlite3.connect(tmp_path / "here.sqlite") as connection:
        connection.execute("CREATE TABLE t (a)")
    given = [f"data.databases=[{{name: here, url: {tmp_path}/here.sqlite}}]"]
    config = resolve("demo", ["data.benchmark=jsonl", f"data.root={tmp_path}", "data.gate_share=0", *given])
    assert (sizes_of(config).train, sizes_of(config).test) == (6, 1)
    run = load_benchmark(config.data, 0, tmp_path / "work")
    assert (len(run.train), len(run.test)) == (6, 1)


def test_labels_of_feedback_are_counted(own: Path, tmp_path: Path) -> None:
    folder = tmp_path / "feedback"
    config = resolve(str(own), [f"data.feedback={folder}"])
    assert sizes_of(config).train == 0
    assert any(f"there is no folder {folder} here" in note for note in plan_costs(config, 0, None, None).notes)
    for database, question in (("s", "How many?"), ("s", "Who?"), ("other", "How many?")):
        store_feedback(folder, database=database, question=question, answer="SELECT COUNT(*) FROM t", rating="up")
    sizes = sizes_of(config)
    assert (sizes.train, sizes.gate, sizes.test) == (2, 0, 0)
    assert (sizes.question, sizes.answer) == (2, 7)  # their letters: 6.5 and 22
    assert next(iter(stages_of(config, sizes))).name == "verify-labels"
    assert not any("feedback" in note for note in plan_costs(config, 0, None, None).notes)
    beside = resolve("demo", [f"data.feedback={folder}"])
    assert sizes_of(beside).train == sizes_of(resolve("demo")).train + 3


def test_a_run_without_labels_has_its_plan_beside_it(own: Path, tmp_path: Path) -> None:
    from spftsql.reporting.report_page import report_page

    run = Run(resolve(str(own), [f"run_dir={tmp_path}"]))
    run.close()
    assert "Planned → actual" in report_page(read_run(run.root))


@pytest.mark.parametrize(
    ("benchmark", "published", "first"),
    [("geoquery", (0, 49, 279), "verify-labels"), ("spider", (0, 0, 1034), "verify-sql-1")],
)
def test_a_share_of_no_labels_leaves_those_of_the_gate(
    own: Path, benchmark: str, published: tuple[int, int, int], first: str
) -> None:
    config = resolve(str(own), [f"data.benchmark={benchmark}", "data.label_share=0"])
    sizes = sizes_of(config)
    assert (sizes.train, sizes.gate, sizes.test) == published
    found = {stage.name: stage for stage in stages_of(config, sizes)}
    assert "train-labels" not in found and next(iter(found)) == first
    assert first != "verify-labels" or found[first].executions == 49


def test_labels_are_drawn_as_the_run_draws_them(tmp_path: Path) -> None:
    row = json.dumps({"db_id": "shop", "question": "How many?", "sql": "SELECT COUNT(*) FROM product"})
    for name, rows in (("train", 5), ("test", 3)):
        (tmp_path / f"{name}.jsonl").write_text(f"{row}\n" * rows)

    def drawn(*overrides: str) -> tuple[int, int, int]:
        sizes = sizes_of(resolve("demo", ["data.benchmark=jsonl", f"data.root={tmp_path}", *overrides]))
        return sizes.train, sizes.gate, sizes.test

    assert drawn() == (4, 1, 3)  # one at least for the gate
    assert drawn("data.gate_share=0") == (5, 0, 3)
    assert drawn("data.label_share=0.01") == (1, 0, 3)  # one at least, and none to hold out of it
    (tmp_path / "train.jsonl").unlink()
    assert drawn("data.label_share=0") == (0, 0, 3)  # there need not be any


def test_recombined_pairs_are_executed_and_phrased_by_nobody() -> None:
    plain, half, all_ = (stages("synthesis.recombination=" + share) for share in ("0", "0.5", "1"))
    assert "verify-recombined-1" not in plain
    assert [name for name in half if name not in plain] == ["verify-recombined-1"]
    assert half["verify-recombined-1"].executions == 4160  # 1.6 for each of 500 pairs, each of them 5.2 times
    assert half["generate-questions-1"].requests == plain["generate-questions-1"].requests / 2
    assert half["verify-sql-1"].executions < plain["verify-sql-1"].executions
    assert all_["verify-recombined-1"].executions == 8320 and "verify-sql-1" not in all_
    assert all_["generate-questions-1"].requests == all_["generate-questions-1"].written == 0  # the run has it, empty
    assert all_["train-round-1"] == plain["train-round-1"]
    voted = stages("synthesis.recombination=1", "synthesis.filter=ranked")
    assert voted["generate-votes-1"].requests == 1000 and voted["verify-votes-1"].executions == 4000
    later = stages("synthesis.recombination=1", "vbi.rounds=2")
    assert later["verify-recombined-2"].executions == 4992  # of 600 pairs


def test_adapters_are_planned_as_adapters() -> None:
    """What a 7B model's adapter of rank 32 takes: 80.7 M weights in bfloat16."""

    def disk(*overrides: str) -> dict[str, float]:
        plan = plan_costs(resolve("spider-qwen2.5-coder-7b", overrides), 0, None, None)
        return {"all": plan.disk} | {stage.plan.name: stage.plan.disk for stage in plan.stages}

    adapters, merged, full = disk(), disk("training.lora.keep=merged"), disk("training.lora=null")
    assert adapters["train-labels"] == pytest.approx(2 * 154 * 2**20, rel=0.001)
    assert adapters["train-round-1"] == adapters["train-play-1"] == adapters["train-labels"] / 2
    assert merged == full and full["train-labels"] == pytest.approx(2 * 2 * SEVEN.parameters)
    assert adapters["all"] < 0.02 * full["all"]
    alone = disk("execution=local")  # one process trains and keeps adapters in float32
    assert alone["train-labels"] == pytest.approx(2 * adapters["train-labels"])
    plan = plan_costs(resolve("spider-qwen2.5-coder-7b"), 0, None, None)
    assert any("retention" in note for note in plan.notes)
    assert not any("retention" in note for note in plan_costs(resolve("demo"), 0, None, None).notes)


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


def folded_run(folder: Path) -> Path:
    """A run with two folds, 100 statements executed in each window, 2 MiB of adapters a training."""
    config = resolve("demo", [f"run_dir={folder}", "gate.folds=2", "generation.gpus=1", "training.gpus=0.5"])
    run = Run(config)

    def verified(stage: Path) -> None:
        rows = [Verdict(str(i), "shop", "ran", "", 1.0, 1, False, "d", "sqlite") for i in range(100)]
        write_records(stage / "verdicts", rows, Verdict)

    def trained(stage: Path) -> None:
        (stage / "sft").mkdir()
        (stage / "sft" / "adapter_model.safetensors").write_bytes(bytes(2**21))

    for part in ("-fold-1", "-fold-2", ""):
        run.stage(f"train-labels{part}", part, trained)
        for window in (1, 2) if part != "-fold-2" else (1,):
            run.stage(f"verify-sql-1-{window}{part}", part, verified)
    run.close()
    return run.root


def test_folds_and_windows_are_found_again(tmp_path: Path) -> None:
    record = read_run(folded_run(tmp_path))
    assert record.config is not None
    plan = plan_costs(record.config, 0, None, None)
    rows = {row.name: row for row in compared(plan.stages, record)}
    assert list(rows) == [stage.plan.name for stage in plan.stages]  # nothing that was not planned
    executed = {
        name: row.actual.executions for name, row in rows.items() if row.actual and name.startswith("verify-sql")
    }
    assert executed == {"verify-sql-1-fold-1": 200, "verify-sql-1-fold-2": 100, "verify-sql-1": 200}
    assert all(rows[f"train-labels{part}"].actual for part in ("-fold-1", "-fold-2", ""))
    assert rows["verify-round-1-fold-1"].actual is None  # not built yet
    other = compared(plan_costs(resolve("demo"), 0, None, None).stages, record)  # planned without folds
    unplanned = {row.name for row in other if row.planned is None}
    assert unplanned == {f"{n}-fold-{k}" for n in ("train-labels", "verify-sql-1") for k in (1, 2)}
    (alone,) = [row for row in other if row.name == "verify-sql-1"]
    assert alone.actual is not None and alone.actual.executions == 200


def test_time_disk_and_money_are_compared(tmp_path: Path) -> None:
    record = read_run(folded_run(tmp_path))
    seconds = {"train": 7200.0, "verify": 36.0}
    record = replace(record, stages=tuple(replace(s, seconds=seconds[s.kind], lost=0.0) for s in record.stages))
    assert record.config is not None
    plan = plan_costs(record.config, 2, DEVICES["H100"], 3.0)
    rows = compared(plan.stages, record, plan.hourly)
    by_name = {row.name: row for row in rows}
    train, sql = by_name["train-labels"], by_name["verify-sql-1"]
    priced = {stage.plan.name: stage for stage in plan.stages}
    assert train.planned is not None and train.actual is not None and sql.planned is not None and sql.actual is not None
    assert train.planned.seconds == pytest.approx(priced["train-labels"].hours * 3600)
    assert train.planned.gpu_hours == priced["train-labels"].gpu_hours
    assert train.planned.disk == priced["train-labels"].plan.disk
    assert train.planned.money == priced["train-labels"].money
    assert train.actual.seconds == 7200 and sql.actual.seconds == 72  # two windows
    assert train.actual.gpu_hours == 2 * 2 * 0.5  # two workers with half a GPU each
    assert train.actual.disk == 2**21
    assert train.actual.money == 2 * 2 * 3.0 and sql.actual.money == pytest.approx(0.02 * 2 * 3.0)  # two GPUs are held

    built = total(rows)
    assert built.planned is not None and built.actual is not None
    assert built.actual.seconds == 3 * 7200 + 5 * 36 and built.actual.disk == pytest.approx(3 * 2**21, rel=0.01)
    like = [priced[row.name] for row in rows if row.actual]  # what was not built is not in the total
    assert built.planned.seconds == pytest.approx(sum(stage.hours or 0 for stage in like) * 3600)
    assert built.planned.money == pytest.approx(sum(stage.money or 0 for stage in like))
    assert built.actual.money == pytest.approx((3 * 7200 + 5 * 36) / 3600 * 2 * 3.0)

    section = comparison_section(rows)
    assert section.header == ("stage", "written", "trained", "executions", "seconds", "GPU-hours", "bytes", "money")
    cells = {row[0]: dict(zip(section.header, row, strict=True)) for row in section.rows}
    assert cells["train-labels"]["money"].endswith("→ 12.00") and cells["train-labels"]["bytes"].endswith("→ 2.1 M")
    assert cells["verify-play-1"]["seconds"].endswith("→ not built")
    assert section.rows[-1][0] == "all that is built"
    narrow = io.StringIO()
    show_sections([section], Console(file=narrow, width=80))
    assert "…" not in narrow.getvalue()  # the fold is at the end of a name


def test_what_is_not_known_is_not_compared(tmp_path: Path) -> None:
    """Without GPUs there are no times of models in the plan, and without a price no money."""
    record = read_run(folded_run(tmp_path))
    record = replace(record, stages=tuple(replace(s, seconds=9.0) for s in record.stages))
    assert record.config is not None
    rows = compared(plan_costs(record.config, 0, None, None).stages, record)
    planned = {row.name: row.planned for row in rows}
    train, sql = planned["train-labels"], planned["verify-sql-1"]
    assert train is not None and train.seconds is train.gpu_hours is train.money is None and train.disk
    assert sql is not None and sql.seconds is not None
    built = total(rows)
    assert built.planned is not None and built.planned.seconds is None and built.planned.executions
    section = comparison_section(rows)
    assert "money" not in section.header
    cells = {row[0]: dict(zip(section.header, row, strict=True)) for row in section.rows}
    assert cells["train-labels"]["seconds"] == "– → 9.0"
    elsewhere = replace(record, stages=tuple(replace(s, seconds=0.0, key="gone") for s in record.stages))
    (kept,) = (row.actual for row in compared([], elsewhere) if row.name == "train-labels")  # built by another run
    assert kept is not None and kept.seconds is kept.gpu_hours is kept.disk is None


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
    assert code == 0 and "planned → actual" in out and "all that is" in out
    code, out, _ = run("--actual", root, "--gpus", "2xH100", "--price", "3", "--json")
    tree = json.loads(out)
    assert code == 0 and tree["actual_total"]["actual"]["money"] > 0 and tree["actual_total"]["planned"]["money"] > 0
    for arguments, complaint in (
        ((), "name a recipe, or a run with --actual"),
        (("demo", "--price", 2), "it goes with --gpus"),
        (("demo", "--gpus", "H100", "--price", "nan"), "is above 0"),
        (("demo", "--gpus", "H100", "--price", "inf"), "is above 0"),
        (("demo", "--gpus", "H100", "--simulate", "--price", "nan"), "is above 0"),
        (("demo", "--gpus", "00xH100"), "give a number and a kind"),
        (("demo", "--gpus", "many"), "give a number and a kind"),
        (("--actual", tmp_path), "is no run directory"),
    ):
        code, _, error = run(*arguments)
        assert code == 2 and complaint in " ".join(error.split())

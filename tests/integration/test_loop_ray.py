"""The whole loop on Ray, vLLM and DeepSpeed at a small size: killed while it trains and while it generates, resumed."""

from pathlib import Path

import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from spftsql.records import Sample, TrainRow, Verdict, read_records
from tests import loops

RAY = {"execution": "ray", "generation.engine": "vllm", "training.workers": "2", "training.micro_batch": "8"}


@pytest.mark.integration
@pytest.mark.timeout(900)
def test_the_loop_on_ray_survives_the_death_of_its_driver(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert loops.kill_in_stage(tmp_path, RAY, "train-round-1", log, delay=15)
    assert loops.kill_in_stage(tmp_path, RAY, "generate-round-1", log, delay=5)
    result = loops.finish(tmp_path, RAY, log, timeout=600)

    run = tmp_path / "demo"
    built = [e["name"] for e in loops.events(tmp_path) if e.get("outcome") == "built"]
    assert len(built) == len(set(built)), "a finished stage was built again"
    assert {row["candidate"] for row in result["rows"]} == {"sft", "control", "vbi-1", "spin-1", "spft-a-1"}
    assert all(row["n"] == sum(row["verdicts"].values()) for row in result["rows"])

    (generated,) = (run / "stages").glob("generate-round-1-*")
    (verified,) = (run / "stages").glob("verify-round-1-*")
    samples, verdicts = read_records(generated / "samples", Sample), read_records(verified / "verdicts", Verdict)
    assert len({(s.id, s.index) for s in samples}) == len(samples) == len(verdicts)
    assert {f"{s.id}/{s.index}" for s in samples} == {v.id for v in verdicts}
    assert not any(verdict.fault for verdict in verdicts)

    (played,) = (run / "stages").glob("train-play-1-*")
    rows = [row for row in read_records(played / "spft-a-1.parquet", TrainRow) if not row.replay]
    assert rows and {row.reward for row in rows} <= {0, 1}
    model = played / "spft-a-1"
    with safe_open(model / "model.safetensors", "pt") as weights:
        assert weights.keys()
    AutoModelForCausalLM.from_pretrained(model)
    assert AutoTokenizer.from_pretrained(model).chat_template

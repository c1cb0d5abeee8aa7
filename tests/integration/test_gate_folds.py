"""`gate.folds` for real: the loop once for each fold of the labels, whose answers the gate has beside its own."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from spftsql.evaluation.local_model import choose_model
from spftsql.records import GenerationRequest, TrainRow, read_records
from spftsql.reporting.run_record import read_run
from tests import loops

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

# What models are like is nothing to this: all answers may be wrong.
FOLDS = {
    "execution": "local",
    "generation.engine": "transformers",
    "gate.folds": "2",
    "synthesis.recombination": "1.0",
    "synthesis.candidates": "1",
    "sft.steps": "10",
    "question_model.steps": "5",
    "vbi.optimization.steps": "10",
}


def test_every_label_decides_once_by_models_that_have_not_seen_it(tmp_path: Path) -> None:
    result = loops.finish(tmp_path, FOLDS, tmp_path / "log", 500)
    root = tmp_path / "demo"
    stages = root / "stages"
    (train,) = stages.glob("train-labels-[!f]*")
    labels = {row.id for row in read_records(train / "sft.parquet", TrainRow)}
    asked = list[str]()
    for fold in (1, 2):
        (trained,) = stages.glob(f"train-labels-fold-{fold}-*")
        (answered,) = stages.glob(f"generate-round-1-fold-{fold}-*")
        seen = {row.id for row in read_records(trained / "sft.parquet", TrainRow)}
        gate = [r.id.removeprefix("sft/gate/") for r in read_records(answered / "requests.parquet", GenerationRequest)]
        mine = [name for name in gate if name in labels]
        assert mine and not seen & set(mine) and seen | set(mine) == labels
        for made in stages.glob(f"train-*-fold-{fold}-*/*.parquet"):
            assert not {row.id for row in read_records(made, TrainRow)} & set(mine)
        asked += mine
    assert Counter(asked) == Counter(labels)

    own = {
        r.id for r in read_records(next(stages.glob("generate-round-1-[!f]*")) / "requests.parquet", GenerationRequest)
    }
    questions = sum(name.startswith("sft/gate/") for name in own) + len(labels)
    assert [one["n"] for one in result["decisions"]] == [questions, questions]

    events = [json.loads(line) for line in (root / "events.jsonl").read_text().splitlines()]
    for kind in ("verdicts", "play", "trained", "selection"):
        assert {event.get("fold") for event in events if event["event"] == kind} == {None, 1, 2}, kind
    steps = Counter(row["job"] for row in map(json.loads, (root / "metrics.jsonl").read_text().splitlines()))
    assert steps["sft"] == steps["sft-fold-1"] == steps["sft-fold-2"] == 10
    tokens = {stage.name: stage.trained for stage in read_run(root).stages if stage.name.startswith("train-labels")}
    assert len(tokens) == 3 and len(set(tokens.values())) == 3 and all(tokens.values())
    model = choose_model(str(root), "vbi-1", "transformers").model
    assert model.is_relative_to(stages) and "-fold-" not in str(model.relative_to(stages))

"""Small trainings whose answers are SQL on a real database: for tests of what a training keeps, and when it ends."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

from spftsql.config import Config, GenerationConfig, ModelConfig, Optimization, ScratchConfig, TrainingConfig
from spftsql.records import GenerationRequest, TrainRow, write_records
from spftsql.training.job import TrainJob
from spftsql.training.scratch import build_scratch_model
from spftsql.training.validation import ExecutionAccuracy

STATES = {"texas": 1, "ohio": 2, "utah": 3, "iowa": 4, "maine": 5, "idaho": 6, "nevada": 7, "kansas": 8}
SCRATCH = ScratchConfig(hidden_size=32, layers=2, heads=2, intermediate_size=48, vocabulary=400, dropout=0.0)


def prompt(state: str) -> str:
    return f"<|user|>area of {state} ?<|assistant|>"


def sql(state: str) -> str:
    return f"select area from state where name = '{state}'"


def rows(pairs: bool = False) -> list[TrainRow]:
    return [
        TrainRow(
            id=state,
            db_id="geo",
            prompt=prompt(state),
            chosen=sql(state),
            rejected="select name from state" if pairs else None,
            reward=1 if pairs else None,
            source="label",
        )
        for state in STATES
    ]


def base_model(folder: Path, scratch: ScratchConfig = SCRATCH) -> Path:
    texts = [text for row in rows() for text in (row.prompt, row.chosen)]
    build_scratch_model(scratch, 64, texts, folder / "base", seed=0)
    return folder / "base"


def database(folder: Path) -> Path:
    file = folder / "geo.sqlite"
    with sqlite3.connect(file) as connection:
        connection.execute("create table state (name text, area integer)")
        connection.executemany("insert into state values (?, ?)", STATES.items())
    connection.close()
    return file


def config_of(**training: Any) -> Config:
    return Config(
        name="t",
        data={"benchmark": "demo"},  # type: ignore[arg-type]
        model=ModelConfig(scratch=SCRATCH, max_length=64),
        generation=GenerationConfig(engine="transformers", cpus=0.5),
        training=TrainingConfig(**{"micro_batch": 8, **training}),
    )


def job_of(base: Path, folder: Path, steps: int, name: str = "job", **changes: Any) -> TrainJob:
    data = folder / f"{name}.parquet"
    write_records(data, rows(changes.get("mode", "sft") != "sft"), TrainRow)
    optimization = Optimization(steps=steps, batch_size=8, learning_rate=1e-2)
    values: dict[str, Any] = {"mode": "sft", "optimization": optimization, "seed": 1} | changes
    return TrainJob(name=name, model=base, data=data, output=folder / name, **values)


def sql_of(identity: str, text: str) -> str:
    return text.strip()


def selection(file: Path, config: Config) -> ExecutionAccuracy:
    """The accuracy over all states, on the database itself."""
    questions = [GenerationRequest(state, "geo", prompt(state), "", 1, 0.0, 24, 0) for state in STATES]
    return ExecutionAccuracy(questions, {state: sql(state) for state in STATES}, {"geo": file}, config, sql_of)


def lines(metrics: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def replace_validate(job: TrainJob, validate: Any) -> TrainJob:
    return replace(job, validate=validate)


def taught(folder: Path, answer: str) -> Path:
    """A model that answers everything with the same."""
    from spftsql.training.local import train_local

    # vLLM on CPUs takes heads of 32 everywhere, of 16 on some only.
    size = ScratchConfig(hidden_size=64, layers=1, heads=2, intermediate_size=64, vocabulary=500, dropout=0.0)
    text = "which artists have albums ? SELECT name FROM table WHERE text ; number primary key e.g. values"
    build_scratch_model(size, 1024, [text] * 8, folder / "scratch", 0)
    words = text.split()
    rows = [
        TrainRow(str(n), "x", f"<|user|>{' '.join(words[n:] * 9)}<|assistant|>", answer, None, None, "label")
        for n in range(len(words))
    ]
    write_records(folder / "rows.parquet", rows, TrainRow)
    job = replace(job_of(folder / "scratch", folder, 40, "model"), data=folder / "rows.parquet")
    config = config_of().model_copy(update={"model": ModelConfig(path="unused", max_length=1024)})
    train_local([job], config, folder / "metrics.jsonl", lambda *_: None)
    return folder / "model"

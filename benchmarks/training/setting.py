"""What both sides train on: pairs over real Spider schemas, and a Qwen2 model with random weights."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spftsql.config import Config, ModelConfig, Optimization, ScratchConfig, TrainingConfig
from spftsql.databases.reflection import reflect
from spftsql.databases.schema_text import schema_text
from spftsql.records import TrainRow, write_records
from spftsql.training.job import TrainJob
from spftsql.training.scratch import build_scratch_model


@dataclass(frozen=True)
class Size:
    """A model, how long its prompts are (tokens, at least), and how much is trained."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    schema_tokens: int
    batch_size: int
    steps: int
    precision: str


SIZES = {
    "cpu": Size(256, 4, 4, 2, 768, 32_000, 1000, 8, 2, "float32"),
    "tiny": Size(32, 2, 2, 1, 64, 8_000, 150, 8, 1, "float32"),  # says nothing about speed: to see that all runs
    "gpu": Size(896, 24, 14, 2, 4864, 151_936, 1500, 16, 10, "bfloat16"),  # Qwen2.5-0.5B
}
BETA = 0.1
LEARNING_RATE = 1e-5
_TOKENIZER_ENTRIES = 4000  # about the tokens per word of a tokenizer that was not made for these schemas
_CONTEXT = 4096


def build(folder: Path, data: Path, size: Size) -> None:
    """Writes a model and, for 1 and for 8 questions per schema, the rows of both kinds of training."""
    spider = data / "spider"
    questions: dict[str, list[dict[str, Any]]] = {}
    for question in json.loads((spider / "dev.json").read_text(encoding="utf-8")):
        questions.setdefault(question["db_id"], []).append(question)
    names = sorted(questions, key=lambda name: (-len(questions[name]), name))
    schemas = {
        name: schema_text(reflect(name, spider / "database" / name / f"{name}.sqlite")) for name in names
    }  # fmt: skip
    texts = [*schemas.values(), *(f"{q['question']} {q['query']}" for each in questions.values() for q in each)]
    scratch = ScratchConfig(
        hidden_size=size.hidden,
        layers=size.layers,
        heads=size.heads,
        intermediate_size=size.intermediate,
        vocabulary=_TOKENIZER_ENTRIES,
        dropout=0.0,
    )
    model = folder / "model"
    build_scratch_model(scratch, _CONTEXT, texts, model, seed=0)
    _resize(model, size)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)

    def length(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    for per_schema in (1, 8):
        rows = _rows(names, questions, schemas, length, size, per_schema)
        write_records(folder / f"pairs-{per_schema}.parquet", rows, TrainRow)


def _resize(model: Path, size: Size) -> None:
    """Random weights with the size's vocabulary and heads; the tokenizer uses a part of the entries."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model)
    config.vocab_size, config.num_key_value_heads = size.vocabulary, size.kv_heads
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(model)


def _rows(
    names: list[str],
    questions: dict[str, list[dict[str, Any]]],
    schemas: dict[str, str],
    length: Callable[[str], int],
    size: Size,
    per_schema: int,
) -> list[TrainRow]:
    """`batch_size · steps` pairs: gold SQL against the SQL of another question of the database.

    A schema that is shorter than it should be is followed by those of other databases, as far as they fit: prompts are
    of one length, within a quarter, and padding costs the other side little.
    """
    rng = random.Random(per_schema)
    most = size.schema_tokens * 5 // 4
    usable = [name for name in names if length(schemas[name]) <= most]
    rows = []
    for n in range(size.batch_size * size.steps // per_schema):
        name = usable[n % len(usable)]
        text, rest = schemas[name] + "\n\n", [other for other in names if other != name]
        rng.shuffle(rest)
        while rest and length(text) < size.schema_tokens:
            longer = text + schemas[rest.pop()] + "\n\n"
            text = longer if length(longer) <= most else text
        for question in rng.sample(questions[name], per_schema):
            others_sql = [q["query"] for q in questions[name] if q["query"] != question["query"]]
            prompt = f"<|user|>{text}Write one SQL statement.\nQuestion: {question['question']}<|assistant|>"
            answer, wrong = question["query"], rng.choice(others_sql)
            rows.append(TrainRow(f"{n}/{question['question']}", name, prompt, answer, wrong, 1, "label"))
    rng.shuffle(rows)
    return rows


def job_of(folder: Path, mode: str, per_schema: int, size: Size) -> TrainJob:
    """Our training of the rows: one epoch."""
    optimization = Optimization(steps=size.steps, batch_size=size.batch_size, learning_rate=LEARNING_RATE)
    return TrainJob(
        name=f"{mode}-{per_schema}",
        model=folder / "model",
        data=folder / f"pairs-{per_schema}.parquet",
        output=folder / f"{mode}-{per_schema}",
        mode="dpo" if mode == "dpo" else "sft",
        optimization=optimization,
        seed=0,
        lambda_=BETA,
    )


def config_of(size: Size, threads: int) -> Config:
    """Our settings: the defaults, with passes of a whole batch, as the other side has them."""
    return Config(
        name="benchmark",
        data={"benchmark": "demo"},  # type: ignore[arg-type]
        model=ModelConfig(path="model", dtype=size.precision, max_length=_CONTEXT),  # type: ignore[arg-type]
        training=TrainingConfig(threads=threads, micro_batch=size.batch_size, micro_tokens=2**20),
    )

"""Spider's questions as prompts for a small random model that is made for the run."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from spftsql.config import DatabaseConfig, PromptConfig, ScratchConfig
from spftsql.databases.catalogue import Database, open_catalogue
from spftsql.databases.schema_text import schema_text
from spftsql.prompts import PromptBuilder
from spftsql.records import GenerationRequest
from spftsql.training.scratch import build_scratch_model

MAX_LENGTH = 2048
_TASK = "\n\nWrite one "  # what follows the schema in a prompt
_SIZE = ScratchConfig(hidden_size=128, layers=2, heads=2, intermediate_size=384, vocabulary=4000, dropout=0.0)

Questions = Mapping[str, Sequence[str]]


def spider_questions(data: Path, databases: int, each: int) -> Questions:
    """`each` of Spider's training and dev questions on every one of so many databases; those with the most."""
    by_database: dict[str, list[str]] = defaultdict(list)
    for row in json.loads((data / "spider-syn" / "train_spider.json").read_text(encoding="utf-8")):
        by_database[row["db_id"]].append(row["SpiderQuestion"])
    for row in json.loads((data / "spider" / "dev.json").read_text(encoding="utf-8")):
        by_database[row["db_id"]].append(row["question"])
    there = {name: found for name, found in by_database.items() if _file(data, name).is_file() and len(found) >= each}
    names = sorted(there, key=lambda name: (-len(there[name]), name))[:databases]
    return {name: there[name][:each] for name in names}


def spider_catalogue(data: Path, names: Sequence[str]) -> dict[str, Database]:
    """The databases of that name."""
    return open_catalogue(DatabaseConfig(name=name, url=str(_file(data, name))) for name in names)


def _file(data: Path, name: str) -> Path:
    return data / "spider" / "database" / name / f"{name}.sqlite"


def small_model(questions: Questions, catalogue: Mapping[str, Database], target: Path) -> Path:
    """A Qwen2 of about a million random weights, whose tokenizer knows the words of these prompts."""
    texts = [question for found in questions.values() for question in found]
    texts += [schema_text(database.schema) for database in catalogue.values()]
    build_scratch_model(_SIZE, MAX_LENGTH, texts, target, seed=0)
    return target


def requests(
    questions: Questions, catalogue: Mapping[str, Database], model: Path, prompt: PromptConfig, max_tokens: int
) -> list[GenerationRequest]:
    """A greedy request for every question, those of one database beside each other."""
    builder = PromptBuilder(prompt, model)
    return [
        GenerationRequest(
            id=f"{name}/{index}",
            db_id=name,
            prompt=builder.text_to_sql(catalogue[name], question),
            model=str(model),
            n=1,
            temperature=0.0,
            max_tokens=max_tokens,
            seed=index,
        )
        for name, found in questions.items()
        for index, question in enumerate(found)
    ]


def shuffled(rows: Sequence[GenerationRequest]) -> list[GenerationRequest]:
    """The same rows, each under a name of its own by which the stage puts them in a random order."""
    order = random.Random(0).sample(range(len(rows)), len(rows))
    return [replace(row, db_id=f"{place:06d}") for place, row in zip(order, rows, strict=True)]


def schema_tokens(rows: Sequence[GenerationRequest], model: Path) -> dict[str, int]:
    """Of every prompt, how many tokens there are up to the end of the schema; for the hit rate of these."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    prefixes = [row.prompt.partition(_TASK)[0] for row in rows]
    encoded = tokenizer(prefixes, add_special_tokens=False)["input_ids"]
    return {row.id: len(tokens) for row, tokens in zip(rows, encoded, strict=True)}

"""`spftsql finetune`: one training alone, from a file of pairs, or from a recipe's labels, to a model directory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from spftsql.config import Config, DatabaseConfig
from spftsql.databases.catalogue import Database, open_catalogue
from spftsql.errors import UserError
from spftsql.progress import Reporter
from spftsql.prompts import PromptBuilder
from spftsql.recipes import resolve
from spftsql.records import Mode, TrainRow, write_records
from spftsql.training.artefact import MANIFEST

_SQL_COLUMNS = ("sql", "SQL", "query")


@dataclass(frozen=True)
class Finetuning:
    """What `spftsql finetune` was asked for."""

    recipe: str | None
    data: Path | None
    model: str | None
    reference: str | None
    mode: Mode
    out: Path
    databases: tuple[str, ...]
    overrides: tuple[str, ...]


def finetune(wanted: Finetuning, report: Reporter) -> None:
    """Trains one model and writes it to `wanted.out`, with `metrics.jsonl` in it; the same command resumes.

    Raises `UserError` when the pairs or the model cannot be used, and when the output is there already: then a run
    would train nothing.
    """
    from spftsql.cluster.session import end_session
    from spftsql.execution import open_execution
    from spftsql.training.job import TrainJob

    out = wanted.out.resolve()
    if (out / MANIFEST).is_file():
        raise UserError(f"{out} holds a finished model: nothing would be trained; remove it or choose another --out")
    if out.exists():
        raise UserError(f"{out} is there already: choose another --out")
    config = _configured(wanted)
    if config.model.path is None:
        raise UserError("say which model is to be trained: --model DIRECTORY_OR_HUB_NAME")
    rows = _rows(wanted, config, report)
    out.parent.mkdir(parents=True, exist_ok=True)
    data, metrics = out.with_name(f".{out.name}.rows.parquet"), out.with_name(f".{out.name}.metrics.jsonl")
    write_records(data, rows, TrainRow)
    play = config.selfplay
    job = TrainJob(
        name=out.name,
        model=Path(config.model.path),
        data=data,
        output=out,
        mode=wanted.mode,
        optimization=config.sft if wanted.mode == "sft" else play.optimization,
        seed=config.seed,
        reference=Path(wanted.reference) if wanted.reference else None,
        lambda_=play.lambda_,
        nll_weight=play.nll_weight,
    )
    try:
        with open_execution(config, {}) as execution, report.task(f"{out.name}: {wanted.mode}") as progress:
            (result,) = execution.train([job], metrics, progress)
    finally:
        if config.execution == "ray":
            end_session()
    metrics.rename(out / "metrics.jsonl")
    data.unlink()
    left_out = f", {result.dropped_rows} rows were too long" if result.dropped_rows else ""
    report.say(f"{out}: {result.steps} steps over {len(rows)} rows{left_out}, loss {result.loss:.4f} at the end")


def _configured(wanted: Finetuning) -> Config:
    overrides = [*wanted.overrides]
    if wanted.model is not None:
        overrides += [f"model.path={json.dumps(wanted.model)}", "model.scratch=null"]
    if wanted.recipe is not None:
        return resolve(wanted.recipe, overrides)
    if wanted.data is None:
        raise UserError("say what is to be trained on: a recipe, or --data FILE with --model")
    tree = {"name": wanted.out.name, "execution": "local", "data": {"benchmark": "jsonl"}, "model": {"path": None}}
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "finetune.yaml"
        recipe.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return resolve(str(recipe), overrides)


def _rows(wanted: Finetuning, config: Config, report: Reporter) -> list[TrainRow]:
    model = wanted.model or config.model.path
    prompts = PromptBuilder(config.prompt, model, config.model.chat_template)
    given = [_database(item) for item in wanted.databases]
    if wanted.data is not None:
        records = list(read_pairs(wanted.data))
        databases = given or config.data.databases
        needed = any("prompt" not in record for record in records)
        catalogue = open_catalogue(databases) if needed and databases else {}
        return [
            train_row(record, f"{wanted.data}, pair {n}", n, wanted.mode, prompts, catalogue)
            for n, record in enumerate(records, 1)
        ]
    if wanted.mode != "sft":
        raise UserError(f"{wanted.mode} needs rejected answers: give them in --data")
    from spftsql.evaluation.benchmarks import load_benchmark

    with tempfile.TemporaryDirectory() as folder:
        benchmark = load_benchmark(config.data, config.seed, Path(folder))
        for note in benchmark.notes:
            report.say(f"  {note}")
        catalogue = open_catalogue(benchmark.databases)
        return [
            TrainRow(
                example.id,
                example.db_id,
                prompts.text_to_sql(catalogue[example.db_id], example.question, example.evidence),
                prompts.answer(example.sql),
                None,
                None,
                example.source,
            )
            for example in benchmark.train
        ]


def _database(item: str) -> DatabaseConfig:
    name, equals, url = item.partition("=")
    if not equals or not name or not url:
        raise UserError(f"--db takes NAME=FILE, not {item!r}")
    return DatabaseConfig(name=name, url=url)


def read_pairs(path: Path) -> Iterable[dict[str, Any]]:
    """The rows of a JSON lines or Parquet file, as they stand there. Raises `UserError` when it cannot be read."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return list(pq.read_table(path).to_pylist())
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        records = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON lines or Parquet: {str(error).splitlines()[0]}") from None
    if not records or not all(isinstance(record, dict) for record in records):
        raise UserError(f"{path} holds no pairs: one JSON object per line is expected")
    return records


def train_row(
    record: Mapping[str, Any],
    where: str,
    number: int,
    mode: Mode,
    prompts: PromptBuilder,
    catalogue: Mapping[str, Database],
) -> TrainRow:
    """A pair as training text.

    Either `prompt` (the whole text that the model continues, special tokens included) and `chosen`, or `question` and
    `sql`, of which the prompt is built for the database `db_id` (not needed where there is one database). For the pair
    modes also `rejected`, and `reward` 1 (it is wrong; the default) or 0. Raises `UserError`, which names `where`.
    """
    rejected = record.get("rejected")
    if mode != "sft" and not rejected and not record.get("replay"):
        raise UserError(f"{where}: {mode} needs `rejected`")
    reward = record.get("reward")
    if reward is None:
        reward = 1 if rejected else None
    if reward not in (None, 0, 1):
        raise UserError(f"{where}: `reward` is 0 or 1, not {reward!r}")
    if "prompt" in record:
        prompt, chosen, db_id = record["prompt"], record.get("chosen"), str(record.get("db_id", ""))
    else:
        sql = next((record[name] for name in _SQL_COLUMNS if name in record), None)
        question = record.get("question")
        if not question or not sql:
            raise UserError(f"{where}: has neither `prompt` and `chosen` nor `question` and `sql`")
        if "db_id" not in record and len(catalogue) != 1:
            raise UserError(f"{where}: says no `db_id`, and there are {len(catalogue)} databases (--db NAME=FILE)")
        db_id = str(record.get("db_id", next(iter(catalogue), "")))
        if db_id not in catalogue:
            raise UserError(f"{where}: database {db_id} is unknown; give it as --db {db_id}=FILE")
        prompt = prompts.text_to_sql(catalogue[db_id], str(question), str(record.get("evidence") or ""))
        chosen, rejected = prompts.answer(str(sql)), prompts.answer(str(rejected)) if rejected else None
    if not isinstance(prompt, str) or not isinstance(chosen, str) or not prompt or not chosen:
        raise UserError(f"{where}: `prompt` and `chosen` are texts that are not empty")
    return TrainRow(
        id=str(record.get("id", number)),
        db_id=db_id,
        prompt=prompt,
        chosen=chosen,
        rejected=rejected if mode != "sft" else None,
        reward=reward if mode != "sft" else None,
        source=str(record.get("source") or "label"),
        replay=bool(record.get("replay", False)),
    )


def modes(names: Sequence[str], chosen: str) -> Mode:
    """A mode by its name. Raises `UserError` for another."""
    if chosen not in names:
        raise UserError(f"unknown mode {chosen}; use {', '.join(names)}")
    return chosen  # type: ignore[return-value]

"""A model on this machine as something that can be asked: a finished run, one of its candidates, or a directory."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spftsql.config import Config
from spftsql.databases.catalogue import Database
from spftsql.errors import UserError
from spftsql.evaluation.answers import Ask, Done, Reply
from spftsql.evaluation.sources import Question
from spftsql.recipes import recipe_of_run, validate
from spftsql.records import GenerationRequest, Sample, content_hash
from spftsql.reporting.run_record import read_lines

_BATCH = 256  # questions whose answers are kept at once


@dataclass(frozen=True)
class LocalChoice:
    """A model directory and the configuration under which it was trained, or defaults."""

    name: str
    model: Path
    config: Config


def choose_model(target: str, candidate: str | None = None, engine: str | None = None) -> LocalChoice:
    """What `MODEL` stands for: a run (its served model, or its `candidate`), or a model directory.

    A directory inside a run is asked as the run asks it. Raises `UserError` when it is neither.
    """
    folder = Path(target).absolute()
    if (folder / "config.yaml").is_file():
        model = _candidate(folder, candidate) if candidate else _served(folder)
        return LocalChoice(f"{folder.name}/{model.name}", model, _run_config(folder, engine))
    if candidate:
        raise UserError(f"--candidate {candidate}: {target} is no run directory (it has no config.yaml)")
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise UserError(
            f"{target} is neither a run (config.yaml) nor a model directory (config.json); for a model behind an "
            "address give --endpoint URL"
        )
    run = next(
        (p for p in folder.parents if (p / "config.yaml").is_file() and folder.is_relative_to(p / "stages")), None
    )
    if run is not None:
        return LocalChoice(f"{run.name}/{folder.name}", folder, _run_config(run, engine))
    tree = {
        "name": folder.name,
        "data": {"benchmark": "jsonl"},
        "model": {"path": str(folder), "dtype": "bfloat16" if _cuda() else "float32"},
        "generation": {"engine": engine or default_engine()},
    }
    return LocalChoice(folder.name, folder, validate(tree, where=target))


def default_engine() -> str:
    """`vllm` where it is installed and there is a GPU, else `transformers`."""
    return "vllm" if importlib.util.find_spec("vllm") and _cuda() else "transformers"


class LocalModel:
    """`Answerer` over an engine in this process."""

    def __init__(self, choice: LocalChoice) -> None:
        """Loads the tokenizer, and no weights yet. Raises `UserError` when the directory cannot be used."""
        from spftsql.generation.checkpoint import check_checkpoint
        from spftsql.generation.engine import open_engine
        from spftsql.prompts import PromptBuilder
        from spftsql.training.artefact import quiet_transformers

        quiet_transformers()
        check_checkpoint(str(choice.model))
        config = choice.config
        self.name, self._model, self._config = choice.name, choice.model, config
        self._prompts = PromptBuilder(config.prompt, choice.model, config.model.chat_template)
        self._engine = open_engine(config)
        files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(choice.model.iterdir())]
        self.identity = content_hash(str(choice.model), files, config.generation.engine, config.model.dtype)

    def prompt(self, database: Database, question: Question) -> str:
        """See `Answerer`."""
        return self._prompts.text_to_sql(database, question.question, question.evidence)

    def sql(self, text: str, database: Database, question: Question) -> str:
        """See `Answerer`."""
        return self._prompts.parse_sql(text, database, question.question)

    def answer(self, asks: Sequence[Ask], done: Done) -> dict[int, str]:
        """See `Answerer`. Neighbours share a database, so that a schema is read once."""
        ordered = sorted(asks, key=lambda ask: (ask.db_id, ask.index, ask.n))
        size = min(_BATCH, self._config.generation.batch_size)
        for start in range(0, len(ordered), size):
            batch = ordered[start : start + size]
            by_id: dict[str, list[Sample]] = {}
            for sample in self._engine.generate([self._request(ask) for ask in batch]):
                by_id.setdefault(sample.id, []).append(sample)
            for ask in batch:
                done(ask, _reply(sorted(by_id[_id(ask)], key=lambda sample: sample.index)))
        return {}

    def close(self) -> None:
        """See `Answerer`."""
        self._engine.close()

    def _request(self, ask: Ask) -> GenerationRequest:
        return GenerationRequest(
            id=_id(ask),
            db_id=ask.db_id,
            prompt=ask.prompt,
            model=str(self._model),
            n=ask.n,
            temperature=ask.temperature,
            max_tokens=ask.max_tokens,
            seed=ask.seed,
        )


def _id(ask: Ask) -> str:
    return f"{ask.index}/{ask.temperature}/{ask.n}"


def _reply(samples: Sequence[Sample]) -> Reply:
    problem = next((sample.error for sample in samples if sample.error), None)
    if problem:
        return Reply((), problem=problem)
    cut = sum(sample.finish_reason == "length" for sample in samples)
    return Reply(tuple(sample.text for sample in samples), sum(sample.tokens for sample in samples), None, cut)


def _served(run: Path) -> Path:
    from spftsql.selfplay.table import load_result

    return Path(load_result(run).served_path)


def _candidate(run: Path, name: str) -> Path:
    """The model of this name that the run has come to last: those of earlier settings and of folds lie beside it."""
    found: dict[str, Path] = {}
    for event in read_lines(run / "events.jsonl"):
        if event.get("event") != "stage" or event.get("outcome") not in ("kept", "built"):
            continue
        stage = str(event["name"])
        if stage.startswith("train-") and "-fold-" not in stage:
            folder = run / "stages" / f"{stage}-{event['key']}"
            found |= {model.name: model for model in folder.glob("*") if model.is_dir()}
    if name not in found:
        raise UserError(f"run {run} has no candidate {name}; it has {', '.join(sorted(found)) or 'none yet'}")
    return found[name]


def _run_config(run: Path, engine: str | None) -> Config:
    config = recipe_of_run(run)
    chosen = engine or (config.generation.engine if config.generation.engine == "transformers" else default_engine())
    return recipe_of_run(run, [f"generation.engine={chosen}"])


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()

"""The endpoint in one process for the tests: everything is real but the model, which knows its answers by heart."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from serve.api import create_api
from serve.metrics import Metrics
from serve.models import REFUSED, Ask, Piece
from serve.service import Service
from spftsql.config import Config, DatabaseConfig, PromptConfig, ScratchConfig
from spftsql.databases.catalogue import open_catalogue
from spftsql.recipes import resolve
from spftsql.sandbox.result import Execution, Granted
from spftsql.serving.keys import KeyRing
from spftsql.serving.voting import Contest
from spftsql.verification.worker import Verifier

Answers = Callable[[str], Sequence[str]]
SECRET = "123-45-6789"


@dataclass
class ScriptedBackend:
    """A model whose samples are what `answers` says of a prompt (taken in turn), over a real sandbox."""

    answers: Answers
    verifier: Verifier
    pause: float = 0.0
    prompts: list[str] = field(default_factory=list)
    asked: list[Ask] = field(default_factory=list)
    open_streams: int = 0

    async def complete(self, ask: Ask) -> list[Piece]:
        self.prompts.append(ask.prompt)
        self.asked.append(ask)
        texts = self.answers(ask.prompt)
        await asyncio.sleep(self.pause)
        if len(ask.prompt) > 20_000:
            return [Piece(0, "the prompt has too many tokens", 0, REFUSED, 0, 0)]
        return [Piece(i, texts[i % len(texts)], len(texts[i % len(texts)].split()), "stop", 7, 3) for i in range(ask.n)]

    async def stream(self, ask: Ask) -> AsyncGenerator[list[Piece]]:
        self.open_streams += 1
        try:
            for piece in await self.complete(ask):
                if piece.finish == REFUSED:
                    yield [piece]
                    return
                words = piece.text.split(" ")
                for number, word in enumerate(words):
                    await asyncio.sleep(self.pause)
                    last = number == len(words) - 1
                    text = word if last else f"{word} "
                    yield [Piece(piece.index, text, 1, "stop" if last else None, 7, 3)]
        finally:
            self.open_streams -= 1

    async def contest(self, db_id: str, candidates: Sequence[str], max_rows: int, granted: Granted | None) -> Contest:
        return await asyncio.to_thread(self.verifier.contest, db_id, candidates, max_rows, granted)

    async def plan(self, db_id: str, sql: str, granted: Granted | None) -> Execution:
        return await asyncio.to_thread(self.verifier.plan, db_id, sql, granted)


def people(path: Path) -> Path:
    """A database with a column and a table that not everybody may read."""
    with sqlite3.connect(path) as connection:
        connection.executescript(
            f"""
            CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT, city TEXT, ssn TEXT);
            CREATE TABLE orders (id INTEGER PRIMARY KEY, person_id INTEGER REFERENCES person (id), total REAL);
            CREATE TABLE salary (person_id INTEGER REFERENCES person (id), amount REAL, note TEXT);
            CREATE VIEW rich AS SELECT name, ssn, amount FROM person JOIN salary ON person.id = salary.person_id;
            INSERT INTO person VALUES (1, 'Ada', 'Paris', '{SECRET}'), (2, 'Bob', 'Rome', '987-65-4321');
            INSERT INTO orders VALUES (1, 1, 9.5), (2, 1, 20), (3, 2, 3);
            INSERT INTO salary VALUES (1, 4242, 'confidential-note'), (2, 1717, 'other-note');
            """
        )
    return path


def tokenizer_folder(folder: Path) -> Path:
    """A model directory, of which the endpoint's own process needs the tokenizer alone."""
    from spftsql.training.scratch import build_scratch_model

    scratch = ScratchConfig(hidden_size=16, layers=1, heads=2, intermediate_size=16, vocabulary=400)
    build_scratch_model(scratch, 256, ["SELECT name FROM person WHERE city = 'Paris'"] * 20, folder, seed=1)
    return folder


def service_of(
    model: Path,
    databases: Mapping[str, str],
    answers: Answers,
    settings: Mapping[str, Any] | None = None,
    model_name: str = "tiny",
) -> tuple[Service, ScriptedBackend]:
    """The service over a scripted model; `settings` by dotted name."""
    overrides = [f"{name}={value}" for name, value in {"prompt.schema_text": "full", **(settings or {})}.items()]
    config: Config = resolve("demo", ["prompt.sql_style=plain", "prompt.placeholders=false", *overrides])
    catalogue = open_catalogue(DatabaseConfig(name=name, url=url) for name, url in databases.items())
    backend = ScriptedBackend(answers, Verifier(dict(databases), config.sandbox))
    return Service({model_name: model}, catalogue, config, backend, Metrics("test")), backend


def api_of(service: Service, keys: Path | None = None, owner: str | None = None) -> FastAPI:
    """The application over it."""
    from spftsql.serving.keys import key_hash

    return create_api(service, KeyRing(keys, key_hash(owner) if owner else None))


@contextlib.contextmanager
def running(api: FastAPI, port: int = 0) -> Iterator[str]:
    """The application behind real HTTP in a thread of this process; its address."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(api, port=port, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def learnt_model(folder: Path, lessons: Mapping[str, str], prompt: PromptConfig) -> Path:
    """A small model that has learnt the answers to a few questions by heart; `prompt` is how it is asked."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from spftsql.databases.catalogue import Database
    from spftsql.databases.places import Source
    from spftsql.databases.schema import Schema
    from spftsql.prompts import PromptBuilder
    from spftsql.sandbox.location import locate
    from spftsql.training.scratch import build_scratch_model

    scratch = ScratchConfig(hidden_size=64, layers=2, heads=2, intermediate_size=128, vocabulary=400)
    build_scratch_model(scratch, 256, [text for pair in lessons.items() for text in pair] * 20, folder, seed=1)
    tokenizer, causal = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    prompts = PromptBuilder(prompt, folder)
    nowhere = Database("people", locate("people.sqlite"), "", Schema("people", "sqlite", ()), Source(()))
    rows = [
        (tokenizer(prompts.text_to_sql(nowhere, question)).input_ids, tokenizer(prompts.answer(sql)).input_ids)
        for question, sql in lessons.items()
    ]
    optimizer = torch.optim.AdamW(causal.parameters(), lr=3e-3)
    for step in range(400):
        prompt_ids, answer = rows[step % len(rows)]
        ids = torch.tensor([[*prompt_ids, *answer, tokenizer.eos_token_id]])
        labels = ids.clone()
        labels[0, : len(prompt_ids)] = -100
        causal(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    causal.save_pretrained(folder)
    return folder

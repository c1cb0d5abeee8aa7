"""Questions put to a model, and the file that keeps its answers as they come.

A row of the file says which request it answers by a hash of all that the answer depends on, so that an evaluation that
was cut off goes on where it was, and one with other settings begins anew. The file of greedy answers is a predictions
file for `spftsql score`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from spftsql.databases.catalogue import Database
from spftsql.errors import UserError, disk_faults
from spftsql.evaluation.keyed_predictions import DRAWN
from spftsql.evaluation.sources import Question, read_text
from spftsql.records import content_hash

Done = Callable[["Ask", "Reply"], None]


@dataclass(frozen=True)
class Ask:
    """One request: `n` answers to a prompt. Temperature 0 is greedy."""

    index: int  # of the question
    db_id: str
    prompt: str
    n: int
    temperature: float
    max_tokens: int
    seed: int

    def key(self, identity: str) -> str:
        """A hash of what the answer depends on; `identity` is that of the model."""
        return content_hash(identity, asdict(self))


@dataclass(frozen=True)
class Reply:
    """What came back: the texts in their order. `problem` says why the model could not be asked at all."""

    texts: tuple[str, ...]
    tokens: int = 0  # written
    prompt_tokens: int | None = None
    cut: int = 0  # texts that ended at the limit of tokens
    problem: str = ""


class Answerer(Protocol):
    """A model that can be asked. `identity` changes when its answers could."""

    name: str
    identity: str

    def prompt(self, database: Database, question: Question) -> str:
        """The prompt for a question, as it is sent."""

    def sql(self, text: str, database: Database, question: Question) -> str:
        """The SQL in an answer to a question."""

    def answer(self, asks: Sequence[Ask], done: Done) -> dict[int, str]:
        """Answers in any order, each told to `done` as it comes; what failed for no fault of the model, by index.

        Raises `UserError` when nothing can be asked as things are, `Fault` when the engine is gone.
        """

    def close(self) -> None:
        """Gives back memory and connections."""


@dataclass(frozen=True)
class Wanted:
    """One row that a file shall have: the request, and the question and database that it is about."""

    ask: Ask
    question: Question
    database: Database


class AnswerFile:
    """The answers to one list of requests, in one file of JSON lines."""

    def __init__(
        self, path: Path, wanted: Sequence[Wanted], answerer: Answerer, mark: Mapping[str, object] | None = None
    ) -> None:
        """Reads what an earlier evaluation has left, and takes out what is not wanted (any more). Every row has `mark`.

        Raises `UserError` when the file cannot be read or the folder not be made.
        """
        self.path = path
        self._wanted = {item.ask.index: item for item in wanted}
        self._keys = {item.ask.index: item.ask.key(answerer.identity) for item in wanted}
        self._answerer, self._mark = answerer, mark or {}
        self.replies: dict[int, Reply] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path.parent} cannot be made: {error.strerror}") from None
        kept = []
        for line in read_text(path).splitlines() if path.is_file() else []:
            found = self._read(line)
            if found is not None and found[0] not in self.replies:
                self.replies[found[0]] = found[1]
                kept.append(self._marked(json.loads(line)))
        with disk_faults(path.parent):
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            temporary.replace(path)

    def missing(self) -> list[Ask]:
        """The requests without an answer."""
        return [item.ask for index, item in self._wanted.items() if index not in self.replies]

    def add(self, index: int, reply: Reply) -> None:
        """Keeps an answer, on disk before it counts. Raises `Fault` when the disk is full."""
        item = self._wanted[index]
        sqls = self._sqls(index, reply)
        row = {
            "index": index,
            "db_id": item.question.db_id,
            "question": item.question.question,
            **({"predicted_sql": sqls[0] if sqls else ""} if item.ask.n == 1 else {"statements": sqls}),
            **asdict(reply),
            "request": self._keys[index],
        }
        with disk_faults(self.path.parent), self.path.open("a", encoding="utf-8") as file:
            file.write(self._marked(row) + "\n")
        self.replies[index] = reply

    def statements(self, index: int) -> list[str]:
        """The SQL of the answers to a question; one empty statement where the model could not be asked."""
        reply = self.replies.get(index)
        return self._sqls(index, reply) if reply and reply.texts else [""]

    def _sqls(self, index: int, reply: Reply) -> list[str]:
        item = self._wanted[index]
        return [self._answerer.sql(text, item.database, item.question) for text in reply.texts]

    def _marked(self, row: Mapping[str, object]) -> str:
        plain = {name: value for name, value in row.items() if name != DRAWN}
        return json.dumps({**plain, **self._mark}, ensure_ascii=True)

    def _read(self, line: str) -> tuple[int, Reply] | None:
        try:
            row = json.loads(line)
            index = int(row["index"])
            if row["request"] != self._keys.get(index):
                return None
            return index, Reply(
                tuple(map(str, row["texts"])), row["tokens"], row["prompt_tokens"], row["cut"], row["problem"]
            )
        except (ValueError, KeyError, TypeError):  # a line that was being written when the machine went down
            return None


def write_predictions(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes rows that `spftsql score` can read, all or none of them. Raises `Fault` when the disk is full."""
    with disk_faults(path.parent):
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text("".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows), encoding="utf-8")
        temporary.replace(path)

"""The demo's labelled questions: hand-written structures, filled with values of the database.

`labels.yaml` holds the structures (SQL with placeholders, and several ways to ask for it). A fill is kept
only when its gold has an answer that says something (not empty, not all NULL or zero) and, where the gold
orders rows, when no two rows tie, so that a right answer can always be told from a wrong one.

The split is the one that the loop needs: few labels to train on, a gate that decides on promotion, and a
test set that only the final table reads. About a quarter of gate and test have structures that training never
shows.
"""

from __future__ import annotations

import itertools
import random
import re
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast

import sqlglot
import yaml
from sqlglot import exp

from spftsql.errors import UserError

Hardness = Literal["easy", "medium", "hard"]
Split = Literal["train", "gate", "test"]

TRAIN_SIZE = 150
GATE_SIZE = 100
UNSEEN_SHARE = 0.25  # of gate and test: questions whose structure does not occur in training
FILLS = 7  # questions made of one structure, at most


@dataclass(frozen=True, slots=True)
class LabelledQuestion:
    """A question, the SQL that answers it, and the part of the data it belongs to.

    `structure` names the entry of labels.yaml: the SQL of one structure differs in its literals only.
    """

    index: int
    question: str
    sql: str
    structure: str
    hardness: Hardness
    split: Split

    @property
    def id(self) -> str:
        """Its name as an example of the benchmark."""
        return f"demo-{self.split}-{self.index:05d}"


@dataclass(frozen=True, slots=True)
class Structure:
    """One entry of labels.yaml. `slots` maps the placeholders to a query or a list of candidate values."""

    id: str
    hardness: Hardness
    sql: str
    questions: tuple[str, ...]
    slots: dict[tuple[str, ...], str | list[Any]]


def load_structures() -> list[Structure]:
    """The hand-written structures, in the order of labels.yaml, each with the slots that it uses."""
    text = resources.files(__package__).joinpath("labels.yaml").read_text(encoding="utf-8")
    document = yaml.safe_load(text)
    structures = []
    for name, entry in document["structures"].items():
        own = {tuple(key.split(", ")): values for key, values in entry.get("slots", {}).items()}
        bound = {placeholder for key in own for placeholder in key}
        for placeholder in placeholders(entry["sql"]):
            if placeholder not in bound:
                own[(placeholder,)] = document["slots"][placeholder]
        structures.append(Structure(name, entry["hardness"], entry["sql"], tuple(entry["questions"]), own))
    return structures


def load_labels(database: Path, seed: int = 0) -> list[LabelledQuestion]:
    """The labelled questions of the demo, for a database that `build_database` wrote.

    `seed` chooses values, phrasings and the split; the order is that of labels.yaml. Raises `UserError` when
    the file is missing or is another database.
    """
    if not database.is_file():
        raise UserError(f"no demo database at {database}: build it with `build_database` first")
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        try:
            drafts = [draft for structure in load_structures() for draft in _fill(structure, connection, seed)]
        except sqlite3.DatabaseError as error:
            raise UserError(f"{database} is not the demo database ({error}): build it again") from error
    unique: dict[str, tuple[Structure, str, str]] = {}
    for draft in drafts:
        unique.setdefault(draft[1], draft)
    splits = _split([structure for structure, _, _ in unique.values()], random.Random(f"split:{seed}"))
    return [
        LabelledQuestion(index, question, sql, structure.id, structure.hardness, split)
        for index, ((structure, question, sql), split) in enumerate(zip(unique.values(), splits, strict=True))
    ]


def sample_question(labels: Sequence[LabelledQuestion], right: Collection[str]) -> LabelledQuestion:
    """What the demo asks at its end: the first easy test question among those answered `right` (ids).

    Where there is none, any test question answered right; where none is, the first easy one of a structure that occurs
    in training.
    """
    test = [label for label in labels if label.split == "test"]
    seen = {label.structure for label in labels if label.split == "train"}
    found = [label for label in test if label.id in right] or [label for label in test if label.structure in seen]
    return next((label for label in found if label.hardness == "easy"), found[0])


def placeholders(text: str) -> list[str]:
    """The names in braces, each once, in order of appearance."""
    return list(dict.fromkeys(re.findall(r"{(\w+)}", text)))


def _fill(structure: Structure, connection: sqlite3.Connection, seed: int) -> Iterator[tuple[Structure, str, str]]:
    """Up to `FILLS` questions: each phrasing in turn, each time with other values while there are any.

    A structure without values gives each phrasing once.
    """
    rng = random.Random(f"{seed}:{structure.id}")
    phrasings = rng.sample(structure.questions, len(structure.questions))
    bindings = _bindings(structure, connection, rng)
    golds = [structure.sql.format(**binding) for binding in bindings]
    good = [pair for pair in zip(bindings, golds, strict=True) if _has_one_answer(connection, pair[1])][:FILLS]
    if not good:
        return
    # A stride that is no multiple of the number of values, so that the second turn pairs them differently.
    stride = len(phrasings) + (len(phrasings) % len(good) == 0)
    for number in range(FILLS if structure.slots else len(phrasings)):
        turn, place = divmod(number, len(phrasings))
        binding, sql = good[(turn * stride + place) % len(good)]
        yield structure, phrasings[place].format(**binding), sql


def _bindings(structure: Structure, connection: sqlite3.Connection, rng: random.Random) -> list[dict[str, Any]]:
    """Shuffled values for the placeholders: three times those needed, since some golds will be dropped."""
    columns: list[list[dict[str, Any]]] = []
    for names, values in structure.slots.items():
        rows = connection.execute(values).fetchall() if isinstance(values, str) else [(v,) for v in values]
        chosen = rng.sample(sorted(rows), min(len(rows), 3 * FILLS))
        columns.append([dict(zip(names, row, strict=True)) for row in chosen])
    count = min(3 * FILLS, max(map(len, columns), default=1))
    return [
        {name: value for column in columns for name, value in column[number % len(column)].items()}
        for number in range(count)
    ]


def _has_one_answer(connection: sqlite3.Connection, sql: str) -> bool:
    """Whether the gold finds something and its ORDER BY, if any, has no tie (the row after LIMIT counts)."""
    rows = connection.execute(sql).fetchall()
    if not any(value for row in rows for value in row):
        return False
    query = sqlglot.parse_one(sql, read="sqlite")
    order = query.args.get("order")
    if order is None:
        return True
    keys = [ordered.this.copy() for ordered in cast("list[exp.Ordered]", order.expressions)]
    probe = query.copy()
    probe.set("expressions", keys)
    probe.set("limit", None)
    ranked = connection.execute(probe.sql(dialect="sqlite")).fetchmany(len(rows) + 1)
    return len(set(ranked)) == len(ranked)


def _split(structures: Sequence[Structure], rng: random.Random) -> list[Split]:
    """A split for each question, given its structure.

    Structures held out of training are drawn evenly over the three degrees of hardness, until they make up
    `UNSEEN_SHARE` of gate and test. Every other structure gives training at least one question.
    """
    members: dict[str, list[int]] = {}
    hardness: dict[str, str] = {}
    for number, structure in enumerate(structures):
        members.setdefault(structure.id, []).append(number)
        hardness[structure.id] = structure.hardness
    for numbers in members.values():
        rng.shuffle(numbers)

    wanted = UNSEEN_SHARE * (len(structures) - TRAIN_SIZE)
    unseen: list[int] = []
    for degree in itertools.cycle(("easy", "medium", "hard")):
        if len(unseen) >= wanted:
            break
        candidate = rng.choice([name for name in members if hardness[name] == degree])
        unseen += members.pop(candidate)

    # Round by round, one question of each structure, so that training covers all of them about equally.
    rounds = itertools.zip_longest(*rng.sample(list(members.values()), len(members)))
    seen = [number for one in rounds for number in one if number is not None]
    train, rest = seen[:TRAIN_SIZE], seen[TRAIN_SIZE:]
    rng.shuffle(rest)
    rng.shuffle(unseen)
    from_unseen = round(GATE_SIZE * len(unseen) / (len(unseen) + len(rest)))
    splits: list[Split] = ["test"] * len(structures)
    for number in train:
        splits[number] = "train"
    for number in unseen[:from_unseen] + rest[: GATE_SIZE - from_unseen]:
        splits[number] = "gate"
    return splits

"""A database as the maker of instances sees it: its schema text, keys and links, a sample of its rows, its habits.

A habit is what the rows keep to although the schema does not ask for it: a column that never repeats or is never NULL,
a column that follows from another. Right SQL may rely on it, so instances keep to it too.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import apsw

from spftsql.databases.schema import Schema
from spftsql.errors import UserError
from spftsql.suites.golds import GoldFacts, Name

Cell = None | int | float | str | bytes
Row = tuple[Cell, ...]
ColumnKind = Literal["integer", "real", "date", "text", "other"]

SAMPLE = 400  # rows of a table that instances are made of
_WITNESSES = 20  # further rows for every literal of a gold
_LONGEST = 2_000  # characters of a text, bytes of a blob that an instance takes over
_HABIT = 3  # rows from which on a column that never repeats is taken to be unique
_CHANCE = 0.01  # how likely it may be that a table shows a dependency between columns by accident
_INCLUDED = 0.9  # share of a column's values that another has, for the first to refer to the second
_FLAG = 9  # two different numbers up to this one are taken to be all that a column may hold
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_DATE = re.compile(r"\d{4}-\d\d?-\d\d?([ T].*)?")


@dataclass(frozen=True)
class SourceColumn:
    """A column that rows are inserted with.

    `kind` is what its values are, whatever they are stored as: `text` says that numbers stand there as text. `unique`
    and `required` (never NULL) hold by the schema or by habit; `closed` columns take no value that the source and the
    golds do not have. `low` and `high` bound numbers, `step` is the smallest difference between them.
    """

    name: str
    kind: ColumnKind
    as_text: bool
    unique: bool
    required: bool
    closed: bool
    nulls: float
    values: tuple[Cell, ...]
    low: float = 0
    high: float = 100
    step: float = 1


@dataclass(frozen=True)
class Link:
    """Columns (by position) that refer to those of another table, as a declared foreign key or as golds use them.

    `copies` are further columns that say what a column of the parent says (position here, position there).
    """

    columns: tuple[int, ...]
    parent: str
    parent_columns: tuple[int, ...]
    copies: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class SourceTable:
    """A table: its sampled rows, keys (sets of positions), links, and blocks of columns that belong together."""

    name: str
    columns: tuple[SourceColumn, ...]
    rows: tuple[Row, ...]
    total: int
    keys: tuple[tuple[int, ...], ...]
    links: tuple[Link, ...]
    blocks: tuple[tuple[int, ...], ...]

    def index(self, column: str) -> int | None:
        """The position of a column, case ignored."""
        return next((i for i, c in enumerate(self.columns) if c.name.lower() == column.lower()), None)


@dataclass(frozen=True)
class Source:
    """A database; `tables` stand in an order in which parents come before their children, as far as there is one."""

    tables: tuple[SourceTable, ...]
    statements: tuple[str, ...]  # CREATE TABLE
    later: tuple[str, ...]  # CREATE of indexes, views and triggers, for when the rows are in
    pragmas: tuple[str, ...]

    def table(self, name: str) -> SourceTable | None:
        """The table of that name, case ignored."""
        return next((table for table in self.tables if table.name.lower() == name.lower()), None)


@dataclass
class _Draft:
    """What is known of a table before its rows are read."""

    name: str
    columns: list[str]
    types: list[str]
    not_null: list[bool]
    rowid: bool
    keys: list[tuple[int, ...]]
    links: list[Link] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


def quoted(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def read_source(database: Path, schema: Schema, facts: Sequence[GoldFacts], seed: int) -> Source:
    """Reads a SQLite file; `facts` of the golds say which rows matter and which columns refer to which.

    Deterministic by `seed`. Raises `UserError` when the file cannot be read.
    """
    try:
        connection = apsw.Connection(
            f"file:{quote(str(database.resolve()))}?mode=ro&immutable=1",
            flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI,
        )
        try:
            return _Reader(connection, schema, facts, seed).read()
        finally:
            connection.close()
    except apsw.Error as error:
        raise UserError(f"database {database} cannot be read: {error}") from None


class _Reader:
    def __init__(self, connection: apsw.Connection, schema: Schema, facts: Sequence[GoldFacts], seed: int) -> None:
        self.connection, self.schema = connection, schema
        self.conditions = list(dict.fromkeys(c for fact in facts for c in fact.conditions))
        self.pairs = list(dict.fromkeys(pair for fact in facts for pair in fact.pairs))
        self.repeated = {(t.lower(), c.lower()) for fact in facts for t, c in fact.repeated}
        self.seed = seed

    def read(self) -> Source:
        listing = list(self.connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
        kinds = {row[1]: row[2] for row in self.connection.execute("PRAGMA main.table_list")}
        own = [(kind, name, sql) for kind, name, sql in listing if not name.startswith("sqlite_")]
        plain = [name for kind, name, _ in own if kind == "table" and kinds[name] == "table"]
        drafts = {name.lower(): self._draft(name) for name in plain}
        for draft in drafts.values():
            draft.links = list(dict.fromkeys(self._links(draft, drafts)))
        order = _parents_first(drafts)
        for name in reversed(order):
            drafts[name].rows = self._rows(drafts[name], drafts)
        for draft in drafts.values():
            draft.links = [
                replace(link, copies=_copies(draft, link, drafts[link.parent.lower()])) for link in draft.links
            ]
        encoding = next(iter(self.connection.execute("PRAGMA encoding")))[0]
        version = next(iter(self.connection.execute("PRAGMA user_version")))[0]
        return Source(
            tables=tuple(self._table(drafts[name]) for name in order),
            statements=tuple(sql for kind, name, sql in own if kind == "table" and kinds[name] != "shadow"),
            later=tuple(sql for wanted in ("index", "view", "trigger") for kind, _, sql in own if kind == wanted),
            pragmas=(f"encoding = '{encoding}'", f"user_version = {version}"),
        )

    def _draft(self, name: str) -> _Draft:
        info = list(self.connection.execute("SELECT * FROM pragma_table_xinfo(?)", (name,)))
        stored = [row for row in info if row[6] == 0]  # the others are generated, or hidden
        places = {row[1].lower(): index for index, row in enumerate(stored)}
        listed = self.connection.execute("SELECT ncol, wr FROM pragma_table_list(?) WHERE schema = 'main'", (name,))
        _, without_rowid = next(iter(listed))
        primary = [row[1].lower() for row in sorted(info, key=lambda row: row[5]) if row[5]]
        keys = [primary] if primary else []
        for index, unique, partial in self.connection.execute(
            'SELECT name, "unique", partial FROM pragma_index_list(?) ORDER BY seq', (name,)
        ):
            if unique and not partial:
                columns = [row[0] for row in self.connection.execute("SELECT name FROM pragma_index_info(?)", (index,))]
                if None not in columns:
                    keys.append([column.lower() for column in columns])
        return _Draft(
            name,
            [row[1] for row in stored],
            [str(row[2]).upper() for row in stored],
            [bool(row[3]) or row[1].lower() in primary for row in stored],
            not without_rowid,
            list(dict.fromkeys(tuple(sorted(places[c] for c in key)) for key in keys if all(c in places for c in key))),
        )

    def _links(self, draft: _Draft, drafts: Mapping[str, _Draft]) -> Iterator[Link]:
        rows = self.connection.execute(
            'SELECT id, "table", "from", "to" FROM pragma_foreign_key_list(?) ORDER BY id, seq', (draft.name,)
        )
        declared: dict[int, list[tuple[str, str, str | None]]] = {}
        for number, parent, column, target in rows:
            declared.setdefault(number, []).append((parent, column, target))
        used: set[int] = set()
        for columns in declared.values():
            parent_draft = drafts.get(columns[0][0].lower())
            if parent_draft is None:
                continue
            names = [target for _, _, target in columns if target is not None]
            targets = [_place(parent_draft, name) for name in names] or list(
                parent_draft.keys[0] if parent_draft.keys else ()
            )
            own = [_place(draft, column) for _, column, _ in columns]
            if len(targets) == len(own) and None not in own and None not in targets:
                link = Link(
                    tuple(i for i in own if i is not None),
                    parent_draft.name,
                    tuple(i for i in targets if i is not None),
                )
                used.update(link.columns)
                yield link
        for one, other in [*self.pairs, *((b, a) for a, b in self.pairs)]:
            if one[0].lower() == draft.name.lower() and other[0].lower() in drafts:
                place, parent_draft = _place(draft, one[1]), drafts[other[0].lower()]
                target = _place(parent_draft, other[1])
                if place is None or target is None or place in used or (place,) in draft.keys:
                    continue
                if (target,) in parent_draft.keys and parent_draft is not draft and self._refers(one, other):
                    used.add(place)
                    yield Link((place,), parent_draft.name, (target,))

    def _refers(self, one: Name, other: Name) -> bool:
        column, target = quoted(one[1]), quoted(other[1])
        sql = (
            f"SELECT count(*), sum(EXISTS (SELECT 1 FROM {quoted(other[0])} p WHERE p.{target} = c.{column})) "
            f"FROM (SELECT DISTINCT {column} FROM {quoted(one[0])} WHERE {column} IS NOT NULL LIMIT 1000) c"
        )
        total, found = next(iter(self.connection.execute(sql)))
        return bool(total == 0 or found >= _INCLUDED * total)

    def _rows(self, draft: _Draft, drafts: Mapping[str, _Draft]) -> list[Row]:
        """A sample: what the sampled children refer to, what golds ask for, and others by chance."""
        wanted: dict[Row, None] = {}
        for child in drafts.values():
            for link in child.links:
                if link.parent == draft.name and child is not draft:
                    keys = dict.fromkeys(tuple(row[i] for i in link.columns) for row in child.rows)
                    where = " AND ".join(f"{quoted(draft.columns[i])} = ?" for i in link.parent_columns)
                    for key in list(keys)[: SAMPLE // 2]:
                        wanted.update(dict.fromkeys(self._select(draft, where, key, 1)))
        for condition in self.conditions:
            if condition.table.lower() == draft.name.lower() and condition.sign in ("=", "in", "like"):
                sign = "LIKE" if condition.sign == "like" else "="
                for value in condition.values:
                    where = f"{quoted(condition.column)} {sign} ?"
                    wanted.update(dict.fromkeys(self._select(draft, where, (value,), _WITNESSES)))
        if draft.rowid and "rowid" not in (column.lower() for column in draft.columns):
            mixed = f"(rowid * 2654435761 + {self.seed % 2**31} * 40503) % 4294967291"
            some = self._select(draft, f"1 ORDER BY {mixed}, rowid", (), SAMPLE)
        else:
            some = self._select(draft, "1", (), 20 * SAMPLE)
            random.Random(f"{self.seed} {draft.name}").shuffle(some)
        wanted.update(dict.fromkeys(some[:SAMPLE]))
        return list(wanted)

    def _select(self, draft: _Draft, where: str, bindings: Sequence[Cell], limit: int) -> list[Row]:
        columns = ", ".join(map(quoted, draft.columns))
        sql = f"SELECT {columns} FROM {quoted(draft.name)} WHERE {where} LIMIT {limit}"
        try:
            rows = list(self.connection.execute(sql, tuple(bindings)))
        except UnicodeDecodeError:
            # Text that is not UTF-8: taken as bytes, and what cannot be read replaced.
            raw = ", ".join(
                f"CASE typeof({c}) WHEN 'text' THEN CAST({c} AS BLOB) ELSE {c} END" for c in map(quoted, draft.columns)
            )
            rows = [
                tuple(c.decode("utf-8", "replace") if isinstance(c, bytes) else c for c in row)
                for row in self.connection.execute(
                    sql.replace(f"SELECT {columns} ", f"SELECT {raw} ", 1), tuple(bindings)
                )
            ]
        return [tuple(cell[:_LONGEST] if isinstance(cell, str | bytes) else cell for cell in row) for row in rows]

    def _table(self, draft: _Draft) -> SourceTable:
        known = self.schema.table(draft.name)
        total = known.rows if known is not None else len(draft.rows)
        columns = []
        for index, name in enumerate(draft.columns):
            facts = known.column(name) if known is not None else None
            distinct, nulls = (facts.distinct, facts.nulls) if facts is not None else (0, 0)
            columns.append(self._column(draft, index, total, distinct, nulls))
        rows = tuple(draft.rows) or _invented(draft, columns, random.Random(f"{self.seed} {draft.name}"))
        linked = {place for link in draft.links for place in link.columns}
        blocks = _blocks(draft, columns, linked)
        return SourceTable(draft.name, tuple(columns), rows, total, tuple(draft.keys), tuple(draft.links), blocks)

    def _column(self, draft: _Draft, index: int, total: int, distinct: int, nulls: int) -> SourceColumn:
        name, declared = draft.columns[index], draft.types[index]
        values = [row[index] for row in draft.rows if row[index] is not None]
        asked = [
            v
            for c in self.conditions
            for v in c.values
            if (c.table.lower(), c.column.lower()) == (draft.name.lower(), name.lower())
        ]
        kind, as_text = _kind(values, declared, asked)
        numbers = [float(v) for v in values if isinstance(v, int | float | str)] if kind in ("integer", "real") else []
        bounds: dict[str, float] = {}
        if numbers:
            bounds = {"low": min(numbers), "high": max(numbers), "step": _step(values) if kind == "real" else 1}
        elif "year" in name.lower():
            bounds = {"low": 1950, "high": 2020}
        repeated = (draft.name.lower(), name.lower()) in self.repeated
        by_habit = kind == "text" and total >= _HABIT and distinct == total and not nulls and not repeated
        few = total >= 3 * distinct
        if kind in ("integer", "real"):
            few = distinct <= 2 and all(0 <= number <= _FLAG for number in numbers)
        return SourceColumn(
            name=name,
            kind=kind,
            as_text=as_text,
            unique=(index,) in draft.keys or by_habit,
            required=draft.not_null[index] or (total > 0 and not nulls),
            closed="BOOL" in declared or (total > 0 and few and distinct <= 40),
            nulls=nulls / total if total else 0.0,
            values=tuple(dict.fromkeys(values)),
            **bounds,
        )


def _place(draft: _Draft, column: str) -> int | None:
    return next((i for i, name in enumerate(draft.columns) if name.lower() == column.lower()), None)


def _parents_first(drafts: Mapping[str, _Draft]) -> list[str]:
    """Names of tables with parents before children; a circle is cut where it is met."""
    order: dict[str, None] = {}
    open_: set[str] = set()

    def visit(name: str) -> None:
        if name in order or name in open_:
            return
        open_.add(name)
        for link in drafts[name].links:
            visit(link.parent.lower())
        order[name] = None

    for name in drafts:
        visit(name)
    return list(order)


def _copies(draft: _Draft, link: Link, parent: _Draft) -> tuple[tuple[int, int], ...]:
    """Pairs of columns, here and in the parent, that are the same in all sampled rows, and not by accident."""
    by_key = {tuple(str(row[i]) for i in link.parent_columns): row for row in parent.rows}
    joined = [(row, by_key[key]) for row in draft.rows if (key := tuple(str(row[i]) for i in link.columns)) in by_key]
    found = []
    for own in range(len(draft.columns)):
        for other in range(len(parent.columns)):
            if own in link.columns or other in link.parent_columns or draft is parent:
                continue
            if joined and all(row[own] == there[other] for row, there in joined):
                counts = Counter(there[other] for _, there in joined)
                alike = sum((count / len(joined)) ** 2 for count in counts.values())
                parents = {tuple(there[i] for i in link.parent_columns) for _, there in joined}
                if alike ** len(parents) < _CHANCE:
                    found.append((own, other))
    return tuple(found)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and _NUMBER.fullmatch(value) is not None)


def _kind(values: Sequence[Cell], declared: str, asked: Sequence[Cell]) -> tuple[ColumnKind, bool]:
    """What the values are, and whether they are stored as text."""
    if any(isinstance(value, bytes) for value in values):
        return "other", False
    if values:
        numeric = [value for value in values if _is_number(value)]
        if len(numeric) == len(values):
            whole = all(float(v).is_integer() for v in numeric if isinstance(v, int | float | str))
            text = [isinstance(v, str) for v in numeric]
            # Leading zeros and signs mean something: such text is no number.
            if any(isinstance(v, str) and str(int(v) if whole else float(v)) != v and v[:1] in "0-+" for v in numeric):
                return "text", True
            return "integer" if whole else "real", any(text)
        if all(isinstance(value, str) and _DATE.fullmatch(value) for value in values):
            return "date", True
        return "text", True
    if any(isinstance(value, int | float) for value in asked) or any(
        w in declared for w in ("INT", "NUM", "DEC", "BOOL")
    ):
        return "integer", not any(w in declared for w in ("INT", "NUM", "DEC", "BOOL", "REAL", "FLOA", "DOUB"))
    if any(word in declared for word in ("REAL", "FLOA", "DOUB")):
        return "real", False
    if any(word in declared for word in ("DATE", "TIME")):
        return "date", True
    return "text", True


def _step(values: Iterable[Cell]) -> float:
    decimals = [len(str(value).partition(".")[2]) for value in values if isinstance(value, float | str)]
    return float(10 ** -min(2, max(decimals, default=1)))


def _invented(draft: _Draft, columns: Sequence[SourceColumn], rng: random.Random) -> tuple[Row, ...]:
    """Rows for a table that has none, by the kinds of its columns."""
    words = (
        "amber",
        "birch",
        "cedar",
        "delta",
        "ember",
        "fjord",
        "grove",
        "heron",
        "inlet",
        "juniper",
        "knoll",
        "lark",
    )
    rows = []
    for number in range(12):
        row: list[Cell] = []
        for column in columns:
            cell: Cell
            if column.unique or column.kind == "text":
                pick = number if column.unique else rng.randrange(6)
                cell = f"{column.name} {words[pick]}" if column.kind == "text" else number + 1
            elif column.kind == "date":
                cell = f"{rng.randint(2000, 2020)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
            elif column.kind == "real":
                cell = rng.randint(2, 200) / 2
            else:
                cell = rng.randint(int(column.low) + 1, int(column.high))
            row.append(str(cell) if column.as_text else cell)
        rows.append(tuple(row))
    return tuple(rows)


def _blocks(draft: _Draft, columns: Sequence[SourceColumn], linked: set[int]) -> tuple[tuple[int, ...], ...]:
    """Sets of columns to be drawn together.

    These are columns of which one follows from the other in the rows, dates, and what names an entity in words: a code
    goes with its name, so that it does not matter by which of them a row is found. Numbers as keys go with nothing.
    """
    group = list(range(len(columns)))

    def join(one: int, other: int) -> None:
        low, high = sorted((group[one], group[other]))
        group[:] = [low if g == high else g for g in group]

    free = [i for i, column in enumerate(columns) if not column.unique and len(column.values) > 1]
    for one in free:
        for other in free:
            if (
                one != other
                and group[one] != group[other]
                and _follows(draft.rows, one, other, _CHANCE / len(free) ** 2)
            ):
                join(one, other)
    dates = [i for i in free if columns[i].kind == "date" and i not in linked]
    names = [i for i, column in enumerate(columns) if column.unique and column.kind == "text" and i not in linked]
    for together in (dates, names):
        for other in together[1:]:
            join(together[0], other)
    members: dict[int, list[int]] = {}
    for index, number in enumerate(group):
        members.setdefault(number, []).append(index)
    return tuple(map(tuple, members.values()))


def _follows(rows: Sequence[Row], one: int, other: int, chance: float) -> bool:
    """Whether column `other` is a function of column `one` in these rows, which by accident has less than a chance."""
    seen: dict[Cell, Cell] = {}
    repeats = 0
    for row in rows:
        if row[one] is None:
            continue
        if row[one] in seen:
            if seen[row[one]] != row[other]:
                return False
            repeats += 1
        else:
            seen[row[one]] = row[other]
    counts = Counter(row[other] for row in rows)
    alike = sum((count / len(rows)) ** 2 for count in counts.values())  # that two rows agree by chance
    return repeats > 0 and alike**repeats < chance

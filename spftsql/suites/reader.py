"""Reads a SQLite file into a `Source`."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

import apsw

from spftsql.databases.schema import Schema
from spftsql.errors import UserError
from spftsql.suites.golds import GoldFacts, Name
from spftsql.suites.habits import blocks, copies, kind_of, step_of
from spftsql.suites.source import Cell, Link, Row, Source, SourceColumn, SourceTable, quoted

SAMPLE = 400  # rows of a table that instances are made of
_WITNESSES = 20  # further rows for every literal of a gold
_LONGEST = 2_000  # characters of a text, bytes of a blob that an instance takes over
_HABIT = 3  # rows from which on a column that never repeats is taken to be unique
_INCLUDED = 0.9  # share of a column's values that another has, for the first to refer to the second
_FLAG = 9  # two different numbers up to this one are taken to be all that a column may hold


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
            links = [(link, drafts[link.parent.lower()]) for link in draft.links]
            draft.links = [
                link if parent is draft else replace(link, copies=copies(link, draft.rows, parent.rows))
                for link, parent in links
            ]
        encoding = next(iter(self.connection.execute("PRAGMA encoding")))[0]
        version = next(iter(self.connection.execute("PRAGMA user_version")))[0]
        return Source(
            tables=tuple(self._table(drafts[name]) for name in order),
            statements=(
                *(sql for kind, name, sql in own if kind == "table" and kinds[name] != "shadow"),
                *(sql for kind, _, sql in own if kind == "index"),
            ),
            later=tuple(sql for wanted in ("view", "trigger") for kind, _, sql in own if kind == wanted),
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
        """Declared foreign keys, and pairs of columns that golds join and whose values bear it out."""
        rows = self.connection.execute(
            'SELECT id, "table", "from", "to" FROM pragma_foreign_key_list(?) ORDER BY id, seq', (draft.name,)
        )
        declared: dict[int, list[tuple[str, str, str | None]]] = {}
        for number, parent, column, target in rows:
            declared.setdefault(number, []).append((parent, column, target))
        used: set[int] = set()
        for columns in declared.values():
            referred = drafts.get(columns[0][0].lower())
            if referred is None:
                continue
            own = [place for _, column, _ in columns if (place := _place(draft, column)) is not None]
            targets = [place for *_, target in columns if target and (place := _place(referred, target)) is not None]
            if columns[0][2] is None and referred.keys:  # the key of the other table
                targets = list(referred.keys[0])
            if len(own) == len(targets) == len(columns):
                used.update(own)
                yield Link(tuple(own), referred.name, tuple(targets))
        for one, other in [*self.pairs, *((b, a) for a, b in self.pairs)]:
            referred = drafts.get(other[0].lower())
            if one[0].lower() != draft.name.lower() or referred is None or referred is draft:
                continue
            place, target_place = _place(draft, one[1]), _place(referred, other[1])
            if place is None or place in used or (place,) in draft.keys or (target_place,) not in referred.keys:
                continue
            if target_place is not None and self._refers(one, other):
                used.add(place)
                yield Link((place,), referred.name, (target_place,))

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
        together = blocks(draft.rows, columns, linked)
        return SourceTable(draft.name, tuple(columns), rows, total, tuple(draft.keys), tuple(draft.links), together)

    def _column(self, draft: _Draft, index: int, total: int, distinct: int, nulls: int) -> SourceColumn:
        name, declared = draft.columns[index], draft.types[index]
        values = [row[index] for row in draft.rows if row[index] is not None]
        asked = [
            v
            for c in self.conditions
            for v in c.values
            if (c.table.lower(), c.column.lower()) == (draft.name.lower(), name.lower())
        ]
        kind, as_text = kind_of(values, declared, asked)
        numbers = [float(v) for v in values if isinstance(v, int | float | str)] if kind in ("integer", "real") else []
        bounds: dict[str, float] = {}
        if numbers:
            bounds = {"low": min(numbers), "high": max(numbers), "step": step_of(values) if kind == "real" else 1}
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

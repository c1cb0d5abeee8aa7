"""How the tables of a database join: the graph of its foreign keys, and the domains of values that keys share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import networkx as nx

from spftsql.databases.schema import Column, Schema
from spftsql.synthesis.steiner import steiner_tree

ColumnName = tuple[str, str]  # table, column
KeyRole = Literal["", "key", "fk"]

_TREES = 20_000  # kept
_DIRECT, _SIBLING = 1.0, 1.5  # a key and the two ends of keys to one parent; a bridge table costs 2


@dataclass(frozen=True)
class Join:
    """The table at this place joins earlier ones: equalities of (earlier place, column) with its own column.

    `side` is LEFT, RIGHT or FULL for an outer join. Without equalities it is a cross join.
    """

    equalities: tuple[tuple[int, str, str], ...]
    side: str = ""


class KeyGraph:
    """The join graph of one schema: tables linked by keys, or by columns that refer to the same parent."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self._parent: dict[ColumnName, ColumnName] = {}
        self.graph: nx.Graph[str] = nx.Graph()
        self.graph.add_nodes_from(table.name for table in schema.tables)
        self.keys: dict[ColumnName, ColumnName] = {}
        for key in schema.foreign_keys:
            left, right = _spelled(schema, key.table, key.column), _spelled(schema, key.target, key.target_column)
            if left is None or right is None:
                continue
            self.keys[left] = right
            self._parent[self.domain(left)] = self.domain(right)
            self._link(left, right, _DIRECT)
        members: dict[ColumnName, list[ColumnName]] = {}
        for table in schema.tables:
            for column in table.columns:
                members.setdefault(self.domain((table.name, column.name)), []).append((table.name, column.name))
        for columns in members.values():
            for left, right in combinations(columns, 2):
                self._link(left, right, _SIBLING)
        self._targets = set(self.keys.values())
        self._by_name = {(table.name, column.name): column for table in schema.tables for column in table.columns}
        self._columns: dict[tuple[str, str, str], list[ColumnName]] = {}
        for table in schema.tables:
            for column in table.columns:
                if table.rows and column.distinct < 2:
                    continue  # it tells nothing apart
                name = (table.name, column.name)
                role = self.role(name)
                for kind in (column.kind, "any") if role else (column.kind,):
                    self._columns.setdefault((table.name, kind, role), []).append(name)
        self._tables_with: dict[tuple[tuple[str, str], ...], list[str]] = {}
        self._joins: dict[tuple[str, ...], tuple[Join, ...] | None] = {}
        self._distances: dict[str, dict[str, float]] = {}
        self._trees: dict[tuple[str, ...], tuple[str, ...] | None] = {}

    def role(self, name: ColumnName) -> KeyRole:
        """Whether a column refers to another table (`fk`), identifies its own (`key`), or neither."""
        if name in self.keys:
            return "fk"
        table = self.schema.table(name[0])
        primary = {key.lower() for key in table.primary_key} if table is not None else set()
        return "key" if primary == {name[1].lower()} or name in self._targets else ""

    def column(self, name: ColumnName) -> Column | None:
        """The column of that name, as the schema spells it."""
        return self._by_name.get(name)

    def columns(self, table: str, kind: str, key: str) -> Sequence[ColumnName]:
        """The columns of a table with this kind (`any`: whatever kind) and key role that have more than one value."""
        return self._columns.get((table, kind, key), ())

    def tables_with(self, wanted: tuple[tuple[str, str], ...]) -> Sequence[str]:
        """The tables with rows that have a column of its own for each of these kinds and key roles."""
        if wanted not in self._tables_with:
            needs = Counter(wanted)
            self._tables_with[wanted] = [
                table.name
                for table in self.schema.tables
                if table.rows and all(len(self.columns(table.name, kind, key)) >= n for (kind, key), n in needs.items())
            ]
        return self._tables_with[wanted]

    def rows(self, table: str) -> int:
        """The number of rows of a table."""
        found = self.schema.table(table)
        return found.rows if found is not None else 0

    def domain(self, column: ColumnName) -> ColumnName:
        """The column that stands for all columns that keys tie to this one: they share their values."""
        while column in self._parent and self._parent[column] != column:
            column = self._parent[column]
        return column

    def _link(self, left: ColumnName, right: ColumnName, weight: float) -> None:
        a, b = left[0], right[0]
        if a == b or (self.graph.has_edge(a, b) and self.graph[a][b]["weight"] <= weight):
            return
        self.graph.add_edge(a, b, weight=weight, columns={a: left[1], b: right[1]})

    def joins(self, tables: tuple[str, ...]) -> tuple[Join, ...] | None:
        """The joins of each table after the first to one before it; None where keys do not say how."""
        if tables not in self._joins:
            if len(self._joins) >= _TREES:
                self._joins.clear()
            self._joins[tables] = self._derive(tables)
        return self._joins[tables]

    def _derive(self, tables: tuple[str, ...]) -> tuple[Join, ...] | None:
        if len(set(tables)) < len(tables):
            return None
        found = []
        for place, table in enumerate(tables[1:], 1):
            near = [
                (self.graph[table][earlier]["weight"], at)
                for at, earlier in enumerate(tables[:place])
                if self.graph.has_edge(table, earlier)
            ]
            if not near:
                return None
            at = min(near)[1]
            columns = self.graph[table][tables[at]]["columns"]
            found.append(Join(((at, columns[tables[at]], columns[table]),)))
        return tuple(found)

    def connect(self, tables: Sequence[str]) -> tuple[str, ...] | None:
        """`tables` and the bridge tables that connect them, each joined to one before it; None where nothing does.

        The Steiner tree of least weight (`spftsql.synthesis.steiner`), the first table first.
        """
        wanted = tuple(dict.fromkeys(tables))
        if wanted not in self._trees:
            if len(self._trees) >= _TREES:
                self._trees.clear()
            self._trees[wanted] = steiner_tree(self.graph, wanted)
        return self._trees[wanted]

    def distance(self, table: str, others: Iterable[str]) -> float | None:
        """The length of the shortest key path to the nearest of `others`; None where there is none."""
        if table not in self._distances:
            self._distances[table] = nx.single_source_dijkstra_path_length(self.graph, table, weight="weight")
        reached = self._distances[table]
        return min((reached[other] for other in others if other in reached), default=None)

    def neighbours(self, tables: Sequence[str]) -> list[str]:
        """The tables that join one of `tables`, in the schema's order."""
        near = {other for table in tables for other in self.graph[table]}
        return [table.name for table in self.schema.tables if table.name in near and table.name not in tables]


def _spelled(schema: Schema, table: str, column: str) -> ColumnName | None:
    """A column as the schema spells it: keys may be declared in another case."""
    found = schema.table(table)
    inner = found.column(column) if found is not None else None
    return (found.name, inner.name) if found is not None and inner is not None else None


_graphs: dict[int, KeyGraph] = {}


def key_graph(schema: Schema) -> KeyGraph:
    """The graph of `schema`, built once for each schema object."""
    graph = _graphs.get(id(schema))
    if graph is None or graph.schema is not schema:
        graph = _graphs[id(schema)] = KeyGraph(schema)
    return graph

"""How the tables of a database join: the graph of its foreign keys, and the domains of values that keys share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import networkx as nx

from spftsql.databases.schema import Column, ForeignKey, Schema
from spftsql.synthesis.steiner import Hub, spread, steiner_tree

ColumnName = tuple[str, str]  # table, column
KeyRole = Literal["", "key", "fk", "part"]
_Pairs = tuple[tuple[str, str], ...]  # columns of one table, each with what it equals of another
_End = tuple[str, tuple[str, ...]]  # a table and the columns of one end of a key, in the order of the table

_TREES = 20_000  # kept
_DIRECT, _SIBLING = 1.0, 1.5  # a key and the two ends of keys to one parent; a bridge table costs 2


@dataclass(frozen=True)
class Join:
    """The table at this place joins earlier ones: equalities of (earlier place, column) with its own column.

    `side` is LEFT, RIGHT or FULL for an outer join. Without equalities it is a cross join.
    """

    equalities: tuple[tuple[int, str, str], ...]
    side: str = ""

    def by_table(self) -> dict[int, list[tuple[str, str]]]:
        """For each earlier place that it joins, the pairs of columns that are equal."""
        found: dict[int, list[tuple[str, str]]] = {}
        for left, column, own in self.equalities:
            found.setdefault(left, []).append((column, own))
        return found


class KeyGraph:
    """The join graph of one schema: tables linked by keys, or by columns that refer to the same parent.

    `graph` has an edge for the keys between two tables; those that refer to one parent are linked by a hub
    (`spftsql.synthesis.steiner`). A key of several columns links by all of them. `keys` are those of one column.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.keys: dict[ColumnName, ColumnName] = {}
        self.graph: nx.Graph[str] = nx.Graph()
        self.graph.add_nodes_from(table.name for table in schema.tables)
        self._by_name = {(table.name, column.name): column for table in schema.tables for column in table.columns}
        self._parent: dict[ColumnName, ColumnName] = {}
        self._parts: set[ColumnName] = set()
        self._references: set[tuple[str, str, frozenset[tuple[str, str]]]] = set()
        self._hubs: dict[str, list[Hub]] = {}
        self._link(_spelled_keys(schema))
        self._targets = set(self.keys.values())
        self._children: dict[ColumnName, list[ColumnName]] = {}
        for child, parent in self.keys.items():
            self._children.setdefault(parent, []).append(child)
        self._with_role: dict[str, list[ColumnName]] = {}
        for name in dict.fromkeys([*self.keys, *self._children]):
            self._with_role.setdefault(self.role(name), []).append(name)
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

    def _link(self, keys: Sequence[Sequence[tuple[ColumnName, ColumnName]]]) -> None:
        for pairs in keys:
            for left, right in pairs:
                if len(pairs) == 1:
                    self.keys[left] = right
                else:
                    self._parts |= {left, right}
                self._parent[self.domain(left)] = self.domain(right)
        for pairs in sorted(keys, key=len, reverse=True):  # a whole key, where one of its columns is a key beside it
            table, target = pairs[0][0][0], pairs[0][1][0]
            columns = tuple((left[1], right[1]) for left, right in pairs)
            self._references.add((table, target, frozenset(columns)))
            if table != target and not self.graph.has_edge(table, target):
                own, other = zip(*columns, strict=True)
                self.graph.add_edge(table, target, weight=_DIRECT, columns={table: own, target: other})
        for hub in [*_hubs_of_several(self.schema, keys), *self._hubs_of_one()]:
            for table in hub.nodes:
                self._hubs.setdefault(table, []).append(hub)

    def _hubs_of_one(self) -> list[Hub]:
        """The tables that share a domain of values, if a key of one column is among what ties it."""
        members: dict[ColumnName, dict[str, tuple[str, ...]]] = {}
        tied = {self.domain(column) for column in self.keys}
        for table, column in self._by_name:
            domain = self.domain((table, column))
            if domain in tied:
                members.setdefault(domain, {}).setdefault(table, (column,))
        return [Hub(_SIBLING, tables) for tables in members.values() if len(tables) > 1]

    def role(self, name: ColumnName) -> KeyRole:
        """Whether a column refers to another table (`fk`) or identifies its own (`key`), or is a `part` of either."""
        if name in self.keys:
            return "fk"
        table = self.schema.table(name[0])
        primary = {key.lower() for key in table.primary_key} if table is not None else set()
        if primary == {name[1].lower()}:
            return "key"
        half = name in self._parts or (name in self._targets and name[1].lower() in primary)
        if half and not (name in self._targets and self._tells_apart(name)):
            return "part"
        return "key" if name in self._targets else ""

    def _tells_apart(self, name: ColumnName) -> bool:
        return self._by_name[name].distinct == self.rows(name[0])

    def refers(self, table: str, target: str, pairs: Collection[tuple[str, str]]) -> bool:
        """Whether these columns of `table`, each with what it equals of `target`, are a whole foreign key."""
        return (table, target, frozenset(pairs)) in self._references

    def column(self, name: ColumnName) -> Column | None:
        """The column of that name, as the schema spells it."""
        return self._by_name.get(name)

    def with_role(self, role: str) -> Sequence[ColumnName]:
        """The columns at either end of a key of one column, that have this role."""
        return self._with_role.get(role, ())

    def tied(self, name: ColumnName, role: str) -> Sequence[ColumnName]:
        """The columns of this role that a key of one column ties to `name`, or two such keys to one parent."""
        parent = self.keys.get(name)
        siblings = self._children[parent] if parent is not None else []
        near = [*([parent] if parent is not None else []), *self._children.get(name, ()), *siblings]
        return [other for other in dict.fromkeys(near) if self.role(other) == role]

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
            links = [
                (*link, at) for at, earlier in enumerate(tables[:place]) if (link := self._between(earlier, table))
            ]
            if not links:
                return None
            _, pairs, at = min(links, key=lambda link: (link[0], link[2]))
            found.append(Join(tuple((at, theirs, own) for theirs, own in pairs)))
        return tuple(found)

    def _between(self, left: str, right: str) -> tuple[float, _Pairs] | None:
        """How two tables join: the weight of it, and the columns that are equal; None where they do not."""
        edge = self.graph.get_edge_data(left, right)
        if edge is not None:
            return edge["weight"], tuple(zip(edge["columns"][left], edge["columns"][right], strict=True))
        hub = next((hub for hub in self._hubs.get(left, ()) if right in hub.nodes), None)
        return (hub.weight, tuple(zip(hub.nodes[left], hub.nodes[right], strict=True))) if hub is not None else None

    def connect(self, tables: Sequence[str]) -> tuple[str, ...] | None:
        """`tables` and the bridge tables that connect them, each joined to one before it; None where nothing does.

        The Steiner tree of least weight (`spftsql.synthesis.steiner`), the first table first.
        """
        wanted = tuple(dict.fromkeys(tables))
        if wanted not in self._trees:
            if len(self._trees) >= _TREES:
                self._trees.clear()
            self._trees[wanted] = steiner_tree(self.graph, wanted, self._hubs)
        return self._trees[wanted]

    def distance(self, table: str, others: Iterable[str]) -> float | None:
        """The length of the shortest key path to the nearest of `others`; None where there is none."""
        lengths = [self._lengths(other).get(table) for other in others]  # from the few to the many that are compared
        return min((length for length in lengths if length is not None), default=None)

    def _lengths(self, table: str) -> dict[str, float]:
        if table not in self._distances:
            self._distances[table] = {table: 0.0}
            spread(self.graph, self._hubs, self._distances[table])
        return self._distances[table]

    def neighbours(self, tables: Sequence[str]) -> list[str]:
        """The tables that join one of `tables`, in the schema's order."""
        near = {other for table in tables for other in self.graph[table]}
        near.update(other for table in tables for hub in self._hubs.get(table, ()) for other in hub.nodes)
        return [table.name for table in self.schema.tables if table.name in near and table.name not in tables]


def _spelled(schema: Schema, table: str, column: str) -> ColumnName | None:
    """A column as the schema spells it: keys may be declared in another case."""
    found = schema.table(table)
    inner = found.column(column) if found is not None else None
    return (found.name, inner.name) if found is not None and inner is not None else None


def _spelled_keys(schema: Schema) -> list[list[tuple[ColumnName, ColumnName]]]:
    """The foreign keys all of whose columns are there, as pairs of columns."""
    found = []
    for columns in schema.constraints:
        pairs = [pair for key in columns if (pair := _spelled_pair(schema, key)) is not None]
        if len(pairs) == len(columns):
            found.append(pairs)
    return found


def _spelled_pair(schema: Schema, key: ForeignKey) -> tuple[ColumnName, ColumnName] | None:
    left, right = _spelled(schema, key.table, key.column), _spelled(schema, key.target, key.target_column)
    return (left, right) if left is not None and right is not None else None


def _hubs_of_several(schema: Schema, keys: Sequence[Sequence[tuple[ColumnName, ColumnName]]]) -> list[Hub]:
    """The tables whose keys of several columns lead to one parent, each with its columns in the order of that one's."""
    place = {(t.name, c.name): (at, n) for at, t in enumerate(schema.tables) for n, c in enumerate(t.columns)}
    up: dict[_End, tuple[_End, dict[str, str]]] = {}  # an end that another stands for, and that one's columns

    def end(columns: Iterable[ColumnName]) -> _End:
        ordered = sorted(columns, key=place.__getitem__)
        return ordered[0][0], tuple(column for _, column in ordered)

    def root(of: _End) -> tuple[_End, dict[str, str]]:
        names = {column: column for column in of[1]}
        while of in up:
            of, step = up[of]
            names = {column: step[name] for column, name in names.items()}
        return of, names

    ends: dict[_End, None] = {}
    for pairs in keys:
        child, parent = end(left for left, _ in pairs), end(right for _, right in pairs)
        if len(child[1]) < 2 or len(set(child[1])) < len(pairs) or len(set(parent[1])) < len(pairs):
            continue
        ends |= {child: None, parent: None}
        (low, own), (high, other) = root(child), root(parent)
        if low != high:
            up[low] = high, {own[left[1]]: other[right[1]] for left, right in pairs}
    members: dict[_End, dict[str, tuple[str, ...]]] = {}
    for one in sorted(ends, key=lambda one: place[one[0], one[1][0]]):
        top, names = root(one)
        back = {name: column for column, name in names.items()}
        members.setdefault(top, {}).setdefault(one[0], tuple(back[name] for name in top[1]))
    return [Hub(_SIBLING, tables) for tables in members.values() if len(tables) > 1]


_graphs: dict[int, KeyGraph] = {}


def key_graph(schema: Schema) -> KeyGraph:
    """The graph of `schema`, built once for each schema object."""
    graph = _graphs.get(id(schema))
    if graph is None or graph.schema is not schema:
        graph = _graphs[id(schema)] = KeyGraph(schema)
    return graph

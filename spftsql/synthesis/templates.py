"""Templates: the structure of a SQL statement without its tables, columns and values.

A template is text such as `SELECT col_text_1 WHERE col_number_2 = (SELECT MAX(col_number_2) WHERE col_text_fk_3 =
value_1)`. Column slots carry type and key role, the same column is the same slot, FROM and JOIN are gone (derived
tables stay). `s2.col_text_1` refers to the second SELECT of the statement; `s1_2.col_text_1` to the second table of the
first, where a table stands twice. Where a table is joined with a derived table, FROM stays with `t1`, `t2` in the place
of tables, and ON conditions are slots as everything else. The idea of typed slots with key roles: Hu et al. 2023 (arXiv
2212.08785).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sqlglot import exp

from spftsql.databases.schema import Schema
from spftsql.records import Example, content_hash
from spftsql.synthesis.canonical import canonicalize, conjuncts, not_too_deep, write
from spftsql.synthesis.hardness import hardness
from spftsql.synthesis.joins import ColumnName, Join, KeyGraph, KeyRole, key_graph
from spftsql.synthesis.placeholders import mentions
from spftsql.synthesis.scopes import Output, Reference, Resolved, Scope, Source, selects

Value = str | int | float
Operator = Literal["equal", "range", "between", "like", "year", "month", "count", "limit", "free"]
_MARK = re.compile(r"z([cv])(\d+)z")
_PARTS: dict[str, Operator] = {"%Y": "year", "%m": "month"}
_RANGES = (exp.GT, exp.GTE, exp.LT, exp.LTE)


@dataclass(frozen=True)
class Slot:
    """A typed hole. For a value, `of` names the column slots that it is compared with, `operator` says how."""

    name: str
    role: Literal["column", "value"]
    kind: str  # of the column: text, number, …, or `any` for a key of whatever kind
    key: KeyRole = ""
    of: tuple[str, ...] = ()
    operator: Operator = "free"


@dataclass(frozen=True)
class Tables:
    """The tables of one SELECT; `joins` only where the key graph would not join them in this way."""

    tables: tuple[str, ...]
    joins: tuple[Join, ...] | None = None


@dataclass(frozen=True)
class Bindings:
    """What fills a template: a column per column slot, a literal per value slot, the tables of each SELECT.

    `unsaid` are the value slots whose literal the label's question does not mention.
    """

    db_id: str
    columns: Mapping[str, ColumnName]
    values: Mapping[str, Value]
    scopes: tuple[Tables, ...]
    unsaid: frozenset[str] = frozenset()

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for equal bindings, and hashable."""
        return (self.db_id, frozenset(self.columns.items()), frozenset(self.values.items()), self.scopes, self.unsaid)

    def to_json(self) -> str:
        """Stable JSON, as it stands in `Statement.bindings`."""
        tree: dict[str, Any] = {slot: ".".join(column) for slot, column in self.columns.items()}
        tree |= dict(self.values)
        tree["tables"] = [list(scope.tables) for scope in self.scopes]
        return json.dumps(tree, sort_keys=True, ensure_ascii=False)


@dataclass(frozen=True)
class Template:
    """A structure, the number of labels that have it, and the (distinct) bindings seen with it.

    `parents` are the ids of the templates that it was derived from (`spftsql.synthesis.composition`).
    """

    id: str
    sql: str
    slots: tuple[Slot, ...]
    count: int
    hardness: str
    bindings: tuple[Bindings, ...] = ()
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problem:
    """A label that gave no template, by its place in the sequence."""

    index: int
    example_id: str
    reason: str


def extract(sql: str, schema: Schema) -> tuple[Template, Bindings]:
    """The template of one statement, and what fills it. Raises `ValueError` with the reason where there is none."""
    return take_apart(canonicalize(sql, schema), schema)


@not_too_deep
def take_apart(resolved: Resolved, schema: Schema) -> tuple[Template, Bindings]:
    """As `extract`, of a canonical statement whose tree is no longer needed."""
    return _Extraction(resolved, schema).result()


def extract_pool(examples: Sequence[Example], schemas: Mapping[str, Schema]) -> tuple[list[Template], list[Problem]]:
    """The templates of labelled examples, most frequent first, and the labels that gave none."""
    pool: dict[str, Template] = {}
    counts: Counter[str] = Counter()
    seen: dict[str, dict[tuple[object, ...], Bindings]] = {}
    problems = []
    for index, example in enumerate(examples):
        schema = schemas.get(example.db_id)
        try:
            if schema is None:
                raise ValueError(f"no database {example.db_id}")
            template, bindings = extract(example.sql, schema)
        except ValueError as error:
            problems.append(Problem(index, example.id, str(error)))
            continue
        unsaid = {slot for slot, value in bindings.values.items() if not mentions(example.question, str(value))}
        bindings = replace(bindings, unsaid=frozenset(unsaid))
        pool.setdefault(template.id, template)
        counts[template.id] += 1
        seen.setdefault(template.id, {}).setdefault(bindings.key, bindings)
    found = [replace(t, count=counts[name], bindings=tuple(seen[name].values())) for name, t in pool.items()]
    return sorted(found, key=lambda t: (-t.count, t.id)), problems


class _Extraction:
    """The state of one extraction: marks `zc1z` (columns) and `zv1z` (values) take the place of names."""

    def __init__(self, resolved: Resolved, schema: Schema) -> None:
        self.resolved, self.schema = resolved, schema
        self.graph: KeyGraph = key_graph(schema)
        self.references = {id(reference.node): reference for reference in resolved.references}
        self.columns: dict[ColumnName, int] = {}
        self.values: dict[tuple[object, ...], int] = {}
        self.ties: dict[int, list[tuple[Operator, ColumnName | None]]] = {}

    def result(self) -> tuple[Template, Bindings]:
        tree = self.resolved.tree
        level = hardness(tree)
        if tree.find(exp.All, exp.Any):
            raise ValueError("a comparison with ALL or ANY, which SQLite does not have")
        if len(list(selects(tree))) != len(list(tree.find_all(exp.Select))):
            raise ValueError("a nested query stands in an unusual place")
        scopes = tuple(self.tables(scope) for scope in self.resolved.scopes)
        self.mark_values(tree)
        self.mark_columns(tree)
        return self.named(write(tree), level, scopes)

    def tables(self, scope: Scope) -> Tables:
        """Takes the FROM clause out of a SELECT; over derived tables it stays, without the names of its tables."""
        places = _places(scope)
        if len(places) < len(scope.sources):
            for number, source in enumerate(places, 1):
                source.node.replace(exp.to_table(f"t{number}"))
            return Tables(tuple(source.table.name for source in places if source.table is not None))
        if not places:
            return Tables(())
        joins = []
        for place, join in enumerate(scope.select.args.get("joins") or [], 1):
            equalities = [self.equality(part, place, scope) for part in conjuncts(join.args.get("on"))]
            joins.append(Join(tuple(equalities), join.side))
        scope.select.set("from_", None)
        scope.select.set("joins", None)
        names = tuple(source.table.name for source in scope.sources if source.table is not None)
        return Tables(names, None if self.graph.joins(names) == tuple(joins) else tuple(joins))

    def equality(self, node: exp.Expr, place: int, scope: Scope) -> tuple[int, str, str]:
        ends = []
        if isinstance(node, exp.EQ):
            for side in (node.this, node.expression):
                reference = self.references.get(id(side))
                if reference is not None and reference.source in scope.sources:
                    ends.append((scope.sources.index(reference.source), str(reference.column)))
        ends.sort(key=lambda end: end[0])
        if len(ends) != 2 or ends[1][0] != place or ends[0][0] >= place:
            raise ValueError("a join condition is not an equality of columns of its tables")
        return ends[0][0], ends[0][1], ends[1][1]

    def base(self, reference: Reference) -> ColumnName | None:
        """The table column behind a reference; None for a computed column of a derived table."""
        column: str | Output = reference.column
        while isinstance(column, Output):
            if column.alias is not None or column.column is None:
                return None
            reference = self.references[id(column.column)]
            column = reference.column
        if reference.source is None or reference.source.table is None:
            return None
        return reference.source.table.name, column

    def mark_columns(self, tree: exp.Expr) -> None:
        # Everything is read before anything is changed: derived columns are followed through the tree.
        found = []
        for node in tree.find_all(exp.Column):
            reference = self.references.get(id(node))
            if reference is not None:
                found.append((node, reference, self.base(reference)))
        for node, reference, column in found:
            if column is None:
                continue
            if column[1] != "*":
                table = self.schema.table(column[0])
                if table is None or table.column(column[1]) is None:
                    raise ValueError("a row id is no column")
                mark = self.columns.setdefault(column, len(self.columns))
                node.set("this", exp.to_identifier(f"zc{mark}z"))
            if isinstance(reference.column, str):
                label = self.qualifier(reference, star=column[1] == "*")
                node.set("table", exp.to_identifier(label) if label else None)

    def qualifier(self, reference: Reference, star: bool) -> str:
        source = reference.source
        if source is None or reference.bare:
            return ""
        places = _places(source.scope)
        twins = [other for other in places if other.table is source.table]
        if len(twins) > 1 or star or len(places) < len(source.scope.sources):
            return f"s{source.scope.index}_{places.index(source) + 1}"
        return "" if source.scope is reference.scope else f"s{source.scope.index}"

    def mark_values(self, tree: exp.Expr) -> None:
        for node in list(tree.find_all(exp.Binary, exp.In, exp.Between, exp.Limit, exp.Case)):
            if isinstance(node, exp.Limit):
                if node.expression.name != "1":
                    self.mark(node.expression, "limit", None)
            elif isinstance(node, exp.Case):
                for branch in node.args["ifs"] if node.this is not None else ():
                    self.mark(branch.this, *self.tie(node.this, "equal"))
            elif isinstance(node, exp.In):
                for item in node.expressions:
                    self.mark(item, *self.tie(node.this, "equal"))
            elif isinstance(node, exp.Between):
                for item in (node.args["low"], node.args["high"]):
                    self.mark(item, *self.tie(node.this, "between"))
            elif isinstance(node, exp.Like | exp.Glob):
                self.mark(node.expression, *self.tie(node.this, "like"))
            elif isinstance(node, exp.EQ | exp.NEQ | exp.GT | exp.GTE | exp.LT | exp.LTE):
                how: Operator = "range" if isinstance(node, _RANGES) else "equal"
                sides = (node.this, node.expression)
                if not all(_literal(side) for side in sides):
                    for side, other in (sides, sides[::-1]):
                        self.mark(side, *self.tie(other, how))

    def tie(self, other: exp.Expr, how: Operator) -> tuple[Operator, ColumnName | None]:
        """What a value is compared with: a column (or an extreme or mean of it), a count, or something else."""
        if isinstance(other, exp.Subquery | exp.Paren):
            return self.tie(other.this, how)
        if isinstance(other, exp.Select):
            return self.tie(other.expressions[0], how)
        if isinstance(other, exp.Alias):
            return self.tie(other.this, how)
        if isinstance(other, exp.Count):
            return "count", None
        if isinstance(other, exp.Max | exp.Min | exp.Avg | exp.Sum):
            return self.tie(other.this, how)
        if isinstance(other, exp.TimeToStr) and other.text("format") in _PARTS:
            part = _PARTS[other.text("format")]
            _, column = self.tie(other.this.this if isinstance(other.this, exp.TsOrDsToTimestamp) else other.this, part)
            return (part, column) if column is not None else ("free", None)
        reference = self.references.get(id(other))
        if reference is None:
            return "free", None
        if isinstance(reference.column, Output) and reference.column.alias is not None:
            return self.tie(reference.column.alias.this, how)
        column = self.base(reference)
        return (how, column) if column is not None else ("free", None)

    def mark(self, node: exp.Expr, how: Operator, column: ColumnName | None) -> None:
        value = _literal(node)
        if value is None:
            return
        domain = self.graph.domain(column) if column is not None else None
        if how == "like":
            core = str(value).strip("%")
            if not core:
                return
            before, after = str(value).split(core)[0], str(value).split(core)[-1]
            number = self.values.setdefault((core, domain), len(self.values))
            node.replace(exp.Literal.string(f"{before}zv{number}z{after}"))
        else:
            number = self.values.setdefault((value, domain or how), len(self.values))
            node.replace(exp.column(f"zv{number}z"))
        self.ties.setdefault(number, []).append((how, column))

    def named(self, marked: str, level: str, scopes: tuple[Tables, ...]) -> tuple[Template, Bindings]:
        """Numbers the slots in the order of the text, so that equal structures give equal text."""
        columns = {number: column for column, number in self.columns.items()}
        values = {number: key[0] for key, number in self.values.items()}
        names: dict[str, str] = {}
        slots: list[Slot] = []
        for match in _MARK.finditer(marked):
            if match.group() in names:
                continue
            number = int(match.group(2))
            if match.group(1) == "c":
                slot = self.column_slot(columns[number], sum(s.role == "column" for s in slots) + 1)
            else:
                name = f"value_{sum(s.role == 'value' for s in slots) + 1}"
                slot = Slot(name, "value", type(values[number]).__name__)
            names[match.group()] = slot.name
            slots.append(slot)
        for place, slot in enumerate(slots):
            if slot.role == "value":
                number = next(int(mark[2:-1]) for mark, name in names.items() if name == slot.name)
                ties = self.ties[number]
                of = [names[f"zc{self.columns[column]}z"] for _, column in ties if column is not None]
                operators = [how for how, _ in ties]
                how: Operator = "equal" if "equal" in operators else operators[0]
                slots[place] = replace(slot, of=tuple(dict.fromkeys(of)), operator=how)
        text = _MARK.sub(lambda match: names[match.group()], marked)
        bindings = Bindings(
            self.schema.db_id,
            {names[f"zc{n}z"]: column for n, column in columns.items() if f"zc{n}z" in names},
            {names[f"zv{n}z"]: value for n, value in values.items() if isinstance(value, str | int | float)},
            scopes,
        )
        return Template(content_hash(text), text, tuple(slots), 1, level, (bindings,)), bindings

    def column_slot(self, name: ColumnName, number: int) -> Slot:
        table = self.schema.table(name[0])
        column = table.column(name[1]) if table is not None else None
        if column is None:
            raise ValueError(f"no column {'.'.join(name)}")
        key = self.graph.role(name)
        return Slot(f"col_{column.kind}_{key + '_' if key else ''}{number}", "column", column.kind, key)


def _places(scope: Scope) -> list[Source]:
    """The sources of a FROM clause that are tables."""
    return [source for source in scope.sources if source.table is not None]


def _literal(node: exp.Expr) -> Value | None:
    """The value of a literal; None for anything else, and for numbers that would not be written back alike."""
    if isinstance(node, exp.Neg):
        inner = _literal(node.this)
        return -inner if isinstance(inner, int | float) else None
    if not isinstance(node, exp.Literal):
        return None
    if node.is_string:
        return str(node.name)
    for kind in (int, float):
        try:
            number = kind(node.name)
        except ValueError:
            continue
        if str(number) == node.name:
            return number
    return None

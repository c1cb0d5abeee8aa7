"""New structures from known ones: each mutation takes one template apart, or two, and gives another, or None.

A mutation changes the text of a template and keeps slots typed: what it adds is a slot of a kind, in the table of a
slot that is there or in a table of its own. It works on templates with one SELECT over joined tables; what it adds may
nest.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from sqlglot import exp

from spftsql.synthesis.canonical import parse, write
from spftsql.synthesis.joins import ColumnName
from spftsql.synthesis.templates import Bindings, Slot, Tables, Value

_SLOT = re.compile(r"\b(?:col_\w+?|value)_\d+\b")
_QUALIFIED = re.compile(r"\bs\d+(?:_\d+)?\.|\bFROM\b")
_AGGREGATES: tuple[type[exp.AggFunc], ...] = (exp.Sum, exp.Avg, exp.Min, exp.Max)
_FIRST_NEW = 900  # numbers of slots that are not yet numbered by their place in the text


@dataclass(frozen=True)
class Part:
    """A template with one of its shapes: `columns` are the tables (letters) of slots, `scopes` those of SELECTs."""

    sql: str
    slots: Mapping[str, Slot]
    columns: Mapping[str, str]
    values: Mapping[str, Value]
    scopes: tuple[Tables, ...]


One = Callable[[Part, random.Random], Part | None]
Two = Callable[[Part, Part, random.Random], Part | None]


def numbered(part: Part) -> tuple[str, tuple[Slot, ...], Bindings]:
    """The text with slots numbered by their place in it, as extraction numbers them; the slots; and the shape."""
    names: dict[str, str] = {}
    counts = {"column": 0, "value": 0}
    for match in _SLOT.finditer(part.sql):
        slot = part.slots[match.group()]
        if match.group() not in names:
            counts[slot.role] += 1
            key = f"{slot.key}_" if slot.key else ""
            kind = f"col_{slot.kind}_{key}" if slot.role == "column" else "value_"
            names[match.group()] = f"{kind}{counts[slot.role]}"
    slots = tuple(
        replace(part.slots[old], name=new, of=tuple(names[name] for name in part.slots[old].of))
        for old, new in names.items()
    )
    columns: dict[str, ColumnName] = {
        new: (part.columns[old], new) for old, new in names.items() if part.slots[old].role == "column"
    }
    values = {new: part.values[old] for old, new in names.items() if old in part.values}
    return _SLOT.sub(lambda m: names[m.group()], part.sql), slots, Bindings("", columns, values, part.scopes)


class _Draft:
    """A part that is being changed."""

    def __init__(self, part: Part) -> None:
        tree = parse(part.sql)
        assert isinstance(tree, exp.Select)
        self.tree = tree
        self.slots, self.columns = dict(part.slots), dict(part.columns)
        self.values, self.scopes = dict(part.values), list(part.scopes)
        self._next = _FIRST_NEW

    def part(self, tree: exp.Query | None = None) -> Part:
        text = write(tree if tree is not None else self.tree)
        kept = set(_SLOT.findall(text))
        # A value that is compared with a column that is gone would have nothing to be drawn from.
        slots = {name: slot for name, slot in self.slots.items() if name in kept and set(slot.of) <= kept}
        columns = {name: table for name, table in self.columns.items() if name in kept}
        values = {name: value for name, value in self.values.items() if name in kept}
        return Part(text, slots, columns, values, tuple(self.scopes))

    @property
    def table(self) -> str:
        """The letter of the table that the first slot is in, else the first table."""
        mentioned = [name for name in _SLOT.findall(write(self.tree)) if name in self.columns]
        return self.columns[mentioned[0]] if mentioned else self.scopes[0].tables[0]

    def new_table(self) -> str:
        """A letter for one more table in the first SELECT."""
        letter = f"n{self._next}"
        self._next += 1
        self.scopes[0] = Tables((*self.scopes[0].tables, letter))
        return letter

    def column(self, kind: str, table: str, key: str = "") -> exp.Column:
        """A new column slot."""
        name = f"col_{kind}_{key + '_' if key else ''}{self._next}"
        self._next += 1
        self.slots[name] = Slot(name, "column", kind, key)  # type: ignore[arg-type]
        self.columns[name] = table
        return exp.column(name)

    def value(self, kind: str, operator: str, of: str = "", seen: Value | None = None) -> exp.Column:
        """A new value slot; `seen` is what a label had, where the size of a number is taken from it."""
        name = f"value_{self._next}"
        self._next += 1
        self.slots[name] = Slot(name, "value", kind, of=(of,) if of else (), operator=operator)  # type: ignore[arg-type]
        if seen is not None:
            self.values[name] = seen
        return exp.column(name)

    def number(self, rng: random.Random) -> exp.Column:
        """A number of the statement's table: one that it selects already, or another."""
        plain = [
            item.copy()
            for item in self.tree.expressions
            if isinstance(item, exp.Column) and item.name in self.slots and self.slots[item.name].kind == "number"
            and not self.slots[item.name].key
        ]  # fmt: skip
        return rng.choice(plain) if plain and rng.random() < 0.5 else self.column("number", self.table)

    def also(self, condition: exp.Expr) -> None:
        """Adds a condition to WHERE."""
        self.tree.where(condition, copy=False)

    def take(self, other: Part, tables: Mapping[str, str]) -> Mapping[str, str]:
        """Takes over the slots of another part under names of their own, its tables renamed; the new names."""
        names = {}
        for old in other.slots:
            names[old] = f"{old.rpartition('_')[0]}_{self._next}"
            self._next += 1
        for old, new in names.items():
            self.slots[new] = replace(other.slots[old], name=new, of=tuple(names[name] for name in other.slots[old].of))
            if old in other.columns:
                self.columns[new] = tables[other.columns[old]]
            if old in other.values:
                self.values[new] = other.values[old]
        return names


def is_simple(part: Part) -> bool:
    """Whether mutations know how to change it: one SELECT, columns without qualifiers, joins derived from keys."""
    return (
        len(part.scopes) == 1
        and part.scopes[0].joins is None
        and len(set(part.scopes[0].tables)) == len(part.scopes[0].tables) > 0
        and not _QUALIFIED.search(part.sql)
        and not part.sql.startswith("(")
        and all(slot in part.columns for slot, s in part.slots.items() if s.role == "column")
        and isinstance(parse(part.sql), exp.Select)
    )


def _has(tree: exp.Select, *clauses: str) -> bool:
    return any(tree.args.get(clause) is not None for clause in clauses)


def _lists_rows(tree: exp.Select) -> bool:
    """Whether each row of the result is a row of the tables, in no order."""
    return not _has(tree, "group", "having", "order", "limit", "distinct") and tree.find(exp.AggFunc) is None


def add_condition(part: Part, rng: random.Random) -> Part | None:
    """One condition more, on the statement's table or on one that joins it."""
    draft = _Draft(part)
    table = draft.new_table() if rng.random() < 0.4 and len(part.scopes[0].tables) < 3 else draft.table
    kind = rng.choice(["text", "text", "number", "number", "date"])
    column = draft.column(kind, table)
    if kind == "text":
        draft.also(exp.EQ(this=column, expression=draft.value("str", "equal", column.name)))
    else:
        value = draft.value("int" if kind == "number" else "str", "range", column.name)
        draft.also(rng.choice([exp.GT, exp.LT])(this=column, expression=value))
    return draft.part()


def swap_aggregate(part: Part, rng: random.Random) -> Part | None:
    """Another aggregate of the same column, wherever it stands."""
    draft = _Draft(part)
    found = [
        node
        for node in draft.tree.find_all(*_AGGREGATES)
        if isinstance(node.this, exp.Column) and draft.slots[node.this.name].kind == "number"
    ]
    if not found:
        return None
    old = rng.choice(found)
    new = rng.choice([kind for kind in _AGGREGATES if kind is not type(old)])
    text = old.sql()
    for node in found:
        if node.sql() == text:
            node.replace(new(this=node.this.copy()))
    return draft.part()


def aggregate(part: Part, rng: random.Random) -> Part | None:
    """How many there are instead of which, or the mean, sum or extreme of the number that was listed."""
    draft = _Draft(part)
    if not _lists_rows(draft.tree):
        return None
    items = draft.tree.expressions
    column = items[0] if len(items) == 1 else None
    of_number = isinstance(column, exp.Column) and draft.slots.get(column.name, Slot("", "column", "")).kind == "number"
    if of_number and rng.random() < 0.7:
        draft.tree.set("expressions", [rng.choice(_AGGREGATES)(this=items[0].copy())])
    elif _has(draft.tree, "where"):
        draft.tree.set("expressions", [exp.Count(this=exp.Star())])
    else:
        return None
    return draft.part()


def add_order(part: Part, rng: random.Random) -> Part | None:
    """Ordered by a number, and cut after the first or the first few."""
    draft = _Draft(part)
    if not _lists_rows(draft.tree):
        return None
    draft.tree.order_by(_ordered(draft.number(rng), rng.random() < 0.6), copy=False)
    _cut(draft, rng, 0.85)
    return draft.part()


def rank_groups(part: Part, rng: random.Random) -> Part | None:
    """Groups ordered by their size, and cut."""
    draft = _Draft(part)
    if not _has(draft.tree, "group") or _has(draft.tree, "order", "limit"):
        return None
    draft.tree.order_by(_ordered(exp.Count(this=exp.Star()), rng.random() < 0.75), copy=False)
    _cut(draft, rng, 0.8)
    return draft.part()


def _ordered(by: exp.Expr, descending: bool) -> exp.Ordered:
    """As SQLite's plain ASC and DESC: NULL is the least."""
    return exp.Ordered(this=by, desc=True if descending else None, nulls_first=not descending)


def _cut(draft: _Draft, rng: random.Random, probability: float) -> None:
    if rng.random() < probability:
        limit: exp.Expr = exp.Literal.number(1) if rng.random() < 0.6 else draft.value("int", "limit")
        draft.tree.set("limit", exp.Limit(expression=limit))


def add_having(part: Part, rng: random.Random) -> Part | None:
    """Only groups of a size, or with a mean or sum beyond a bound."""
    draft = _Draft(part)
    if not _has(draft.tree, "group") or _has(draft.tree, "having"):
        return None
    if rng.random() < 0.6:
        condition: exp.Expr = exp.GT(this=exp.Count(this=exp.Star()), expression=draft.value("int", "count", seen=2))
    else:
        column = draft.column("number", draft.table)
        inner = rng.choice([exp.Avg, exp.Max, exp.Min])(this=column)
        condition = exp.GT(this=inner, expression=draft.value("int", "range", column.name))
    draft.tree.set("having", exp.Having(this=condition))
    return draft.part()


def add_group(part: Part, rng: random.Random) -> Part | None:
    """An aggregate for every value of a text column."""
    draft = _Draft(part)
    items = draft.tree.expressions
    if _has(draft.tree, "group", "having", "order", "limit") or not all(isinstance(i, exp.AggFunc) for i in items):
        return None
    column = draft.column("text", draft.table)
    draft.tree.set("expressions", [column, *items])
    draft.tree.set("group", exp.Group(expressions=[column.copy()]))
    return draft.part()


def add_output(part: Part, rng: random.Random) -> Part | None:
    """One column more in the answer."""
    draft = _Draft(part)
    if _has(draft.tree, "group", "distinct") or draft.tree.find(exp.AggFunc) or len(draft.tree.expressions) > 2:
        return None
    if not all(isinstance(item, exp.Column) for item in draft.tree.expressions):
        return None
    draft.tree.append("expressions", draft.column(rng.choice(["text", "number", "number", "date"]), draft.table))
    return draft.part()


def extreme(part: Part, rng: random.Random) -> Part | None:
    """Those with the greatest or least number, or above or below the mean."""
    draft = _Draft(part)
    if not _lists_rows(draft.tree):
        return None
    column = draft.column("number", draft.table)
    operator: type[exp.Binary]
    inner: type[exp.AggFunc]
    if not _has(draft.tree, "where") and rng.random() < 0.5:
        operator, inner = exp.EQ, rng.choice([exp.Max, exp.Min])
    else:
        operator, inner = rng.choice([exp.GT, exp.LT]), exp.Avg
    query = exp.Select(expressions=[inner(this=column.copy())])
    draft.also(operator(this=column, expression=exp.Subquery(this=query)))
    draft.scopes.append(Tables((draft.columns[column.name],)))
    return draft.part()


def nest_in(outer: Part, inner: Part, rng: random.Random) -> Part | None:
    """Those that have (or have not) something that the other template describes: `key IN (SELECT fk WHERE …)`."""
    draft, other = _Draft(outer), parse(inner.sql)
    where = other.args.get("where")
    if not isinstance(other, exp.Select) or where is None or _has(other, "group", "limit", "having"):
        return None
    if _has(draft.tree, "group", "limit", "order"):
        return None
    letters = {letter: f"m{number}" for number, letter in enumerate(inner.scopes[0].tables)}
    if not set(inner.columns.values()) <= letters.keys():
        return None
    names = draft.take(inner, letters)
    condition = parse(_SLOT.sub(lambda m: names[m.group()], write(other))).args["where"].this
    at = next((letters[inner.columns[name]] for name in _SLOT.findall(where.sql()) if name in inner.columns), "")
    if not at:
        return None
    key, foreign = draft.column("any", draft.table, "key"), draft.column("any", at, "fk")
    query = exp.Select(expressions=[foreign], where=exp.Where(this=condition.copy()))
    found: exp.Expr = exp.In(this=key, query=exp.Subquery(this=query))
    draft.also(exp.Not(this=found) if rng.random() < 0.3 else found)
    draft.scopes.append(Tables(tuple(letters.values())))
    return draft.part()


def compare_with_group(outer: Part, inner: Part, rng: random.Random) -> Part | None:
    """Those whose number is beyond the mean, greatest or least among what the other template describes."""
    draft, other = _Draft(outer), parse(inner.sql)
    where = other.args.get("where")
    if not isinstance(other, exp.Select) or where is None or len(inner.scopes[0].tables) > 1:
        return None
    if not _lists_rows(draft.tree):
        return None
    column = draft.column("number", draft.table)
    names = draft.take(inner, dict.fromkeys(inner.columns.values(), draft.columns[column.name]))
    condition = parse(_SLOT.sub(lambda m: names[m.group()], write(other))).args["where"].this
    aggregate_ = rng.choice([exp.Avg, exp.Max, exp.Min])(this=column.copy())
    query = exp.Select(expressions=[aggregate_], where=exp.Where(this=condition.copy()))
    draft.also(rng.choice([exp.GT, exp.LT])(this=column, expression=exp.Subquery(this=query)))
    draft.scopes.append(Tables((draft.columns[column.name],)))
    return draft.part()


def combine(left: Part, right: Part, rng: random.Random) -> Part | None:
    """A set operation of two templates that list the same column; of one with itself: other values."""
    draft, other = _Draft(left), parse(right.sql)
    if not isinstance(other, exp.Select):
        return None
    for tree in (draft.tree, other):
        if _has(tree, "order", "limit", "distinct") or len(tree.expressions) != 1 or not _has(tree, "where", "having"):
            return None
    mine, theirs = (tree.expressions[0] for tree in (draft.tree, other))
    if not (isinstance(mine, exp.Column) and isinstance(theirs, exp.Column)):
        return None
    one, another = left.slots[mine.name], right.slots[theirs.name]
    if (one.kind, one.key) != (another.kind, another.key):
        return None
    letters = {letter: f"m{number}" for number, letter in enumerate(right.scopes[0].tables)}
    if not set(right.columns.values()) <= letters.keys():
        return None
    if left is right:
        letters = {letter: letter for letter in letters}
    letters[right.columns[theirs.name]] = left.columns[mine.name]
    names = dict(draft.take(right, letters))
    merged = set(right.columns) if left is right else {theirs.name}
    for name in merged:
        draft.slots.pop(names[name])
        draft.columns.pop(names[name])
    back = {names[name]: name if left is right else mine.name for name in merged}
    names |= {name: back[names[name]] for name in merged}
    for name, slot in draft.slots.items():
        draft.slots[name] = replace(slot, of=tuple(back.get(column, column) for column in slot.of))
    second = parse(_SLOT.sub(lambda m: names[m.group()], write(other)))
    kind = rng.choice([exp.Intersect, exp.Union, exp.Except])
    draft.scopes.append(Tables(tuple(letters[letter] for letter in right.scopes[0].tables)))
    return draft.part(kind(this=draft.tree, expression=second, distinct=True))


ONE: Mapping[str, One] = {
    "add-condition": add_condition,
    "swap-aggregate": swap_aggregate,
    "aggregate": aggregate,
    "add-order": add_order,
    "rank-groups": rank_groups,
    "add-having": add_having,
    "add-group": add_group,
    "add-output": add_output,
    "extreme": extreme,
}
TWO: Mapping[str, Two] = {"nest-in": nest_in, "compare-with-group": compare_with_group, "combine": combine}

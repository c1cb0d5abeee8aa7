"""Rules against absurd SQL: statements that run, and that nobody would ask for.

Each rule has a name and looks at one filled template: what the template does with its slots (`Uses`), what fills them
(`Bindings`), and the database (keys, counts and values). Rules about columns do not apply to columns that a label used
(`column_rules`): people asked that. Rules about values always do, except to values that the label's question does not
say ("major cities").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, permutations

from spftsql.databases.schema import Column
from spftsql.databases.values import Values
from spftsql.synthesis.bounds import Bound, alike, comparable, covers, inside
from spftsql.synthesis.joins import ColumnName, Join, KeyGraph
from spftsql.synthesis.templates import Bindings, Tables
from spftsql.synthesis.uses import Condition, Place, Uses

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_IDENTIFIERS = frozenset(
    ["id", "ids", "uid", "uuid", "guid", "code", "key", "ssn", "isbn", "issn", "ean", "sku", "zip", "zipcode",
     "postcode", "postal", "phone", "telephone", "fax"]
)  # fmt: skip
_NOT_IDENTIFIERS = re.compile(r"(?:paid|aid|bid|acid|grid|humid|solid|valid|void|fluid|liquid|mid|kid)$")
# Dates, times and quantities written as text: asked for by their order, whatever SQL makes of it.
_IN_ORDER = re.compile(r"\d{1,4}[-/:.]\d{1,2}\b|[-+]?\d*\.?\d+%?$")
_WORDS_FOR_ANY = frozenset(["high", "low", "yes", "no"])  # texts in a result that say nothing of a column
_MANY = 5  # rows from which values that are all different are no accident


@dataclass(frozen=True)
class Filled:
    """A filled template as the rules see it."""

    uses: Uses
    bindings: Bindings
    graph: KeyGraph
    values: Values
    mentioned: tuple[tuple[str, ...], ...] = ()  # the column slots of each SELECT's own tables

    def column(self, slot: str) -> Column | None:
        """The column in a slot."""
        return self.graph.column(self.bindings.columns[slot]) if slot in self.bindings.columns else None


Rule = Callable[[Filled], bool]


def broken_column_rule(filled: Filled) -> str | None:
    """The name of the first rule about columns and joins that is broken; values are not looked at."""
    return next((name for name, broken in COLUMN_RULES.items() if broken(filled)), None)


def broken_value_rule(filled: Filled) -> str | None:
    """The name of the first rule about values that is broken."""
    return next((name for name, broken in VALUE_RULES.items() if broken(filled)), None)


@lru_cache(maxsize=100_000)
def names_identifier(name: str) -> bool:
    """Whether a column by this name holds ids, codes or numbers that are names: order_id, StuID, zipcode, phone."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words:
        return False
    last = words[-1]
    if last in _IDENTIFIERS or (last == "number" and words[-2:-1] and words[-2] in _IDENTIFIERS):
        return True
    return last.endswith("ssn") or (last.endswith("id") and not _NOT_IDENTIFIERS.search(last))


def is_unique(graph: KeyGraph, name: ColumnName) -> bool:
    """Whether a column has another value in every row: a key, or by its values in a table that is not tiny."""
    table, column = graph.schema.table(name[0]), graph.column(name)
    if table is None or column is None:
        return False
    if tuple(map(str.lower, table.primary_key)) == (name[1].lower(),):
        return True
    if not table.rows or column.distinct != table.rows:
        return False
    return graph.role(name) == "key" or table.rows >= _MANY


def _identifies(filled: Filled, slot: str) -> bool:
    name = filled.bindings.columns[slot]
    return bool(filled.graph.role(name)) or names_identifier(name[1])


def _is_name(column: Column | None) -> bool:
    """Text that has no order worth asking for."""
    if column is None or column.kind in ("number", "date", "boolean"):
        return False
    return not (column.samples and all(_IN_ORDER.match(str(value)) for value in column.samples))


def _sum_of_identifier(filled: Filled) -> bool:
    """SUM, TOTAL, AVG or arithmetic over a key, an id, a code, a year, or text."""
    for slot in filled.uses.summed & filled.bindings.columns.keys():
        column = filled.column(slot)
        if column is None or column.kind == "date" or _is_name(column) or _identifies(filled, slot):
            return True
        if column.name.lower().endswith("year"):
            return True
    return False


def _range_over_name(filled: Filled) -> bool:
    """<, > or BETWEEN over a name, a text, a key or an id."""
    slots = filled.uses.ranged & filled.bindings.columns.keys()
    return any(_is_name(filled.column(slot)) or _identifies(filled, slot) for slot in slots)


def _extreme_of_name(filled: Filled) -> bool:
    """MAX, MIN, the first or the rank by the order of a name, a text, a key or an id."""
    slots = filled.uses.extremes & filled.bindings.columns.keys()
    return any(_is_name(filled.column(slot)) or _identifies(filled, slot) for slot in slots)


def _constant_column(filled: Filled) -> bool:
    """A column that has no two values is selected, grouped, ordered, aggregated or compared."""
    uses = filled.uses
    slots = (uses.told_apart | uses.extremes | uses.summed) & filled.bindings.columns.keys()
    return any((column := filled.column(slot)) is not None and column.distinct < 2 for slot in slots)


def _empty_table(filled: Filled) -> bool:
    """A table without rows."""
    return any(not filled.graph.rows(table) for tables in filled.bindings.scopes for table in tables.tables)


def _join_without_key(filled: Filled) -> bool:
    """Tables that are not joined, or joined over columns that no key ties together."""
    for tables in filled.bindings.scopes:
        if tables.joins is None:
            continue  # derived from the keys
        for place, join in enumerate(tables.joins, 1):
            if not join.equalities:
                return True
            for left, column, own in join.equalities:
                ends = (tables.tables[left], column), (tables.tables[place], own)
                if filled.graph.domain(ends[0]) != filled.graph.domain(ends[1]):
                    return True
    return False


def _same_row_twice(filled: Filled) -> bool:
    """A table joined again whose row can only be the one that is there: both by the key, and by one column."""
    for tables in filled.bindings.scopes:
        parts: dict[tuple[int, str], int] = {}  # columns at places, and which of them are equal
        for place, join in enumerate(tables.joins or (), 1):
            for left, column, own in join.equalities:
                here = parts.setdefault((place, own), len(parts))
                there = parts.setdefault((left, column), len(parts))
                parts = {end: there if part == here else part for end, part in parts.items()}
        rows = [
            (tables.tables[place], column, part)
            for (place, column), part in parts.items()
            if is_unique(filled.graph, (tables.tables[place], column))
        ]
        if len(set(rows)) < len(rows):
            return True
    return False


def _unrelated_comparison(filled: Filled) -> bool:
    """Columns compared (=, IN, or by a set operation) that hold different things.

    Columns of one name may be compared; of two names that have nothing in common none can be taken away from the other.
    """
    for left, right in filled.uses.links:
        one, other = filled.bindings.columns.get(left), filled.bindings.columns.get(right)
        if one is None or other is None or filled.graph.domain(one) == filled.graph.domain(other):
            continue
        if one[1].lower() != other[1].lower():
            return True
        if (left, right) in filled.uses.subtracted and not filled.values.in_common(one, other):
            return True
    return False


def _group_by_unique(filled: Filled) -> bool:
    """GROUP BY, or PARTITION BY, where every group is one row: over a unique key whose rows no join multiplies."""
    for number, select in enumerate(filled.uses.selects):
        if any(_one_row_each(filled, number, groups) for groups in (select.groups, *select.partitions)):
            return True
    return False


def _one_row_each(filled: Filled, number: int, groups: tuple[Place, ...]) -> bool:
    """Whether no two rows of SELECT `number` have the same values in the columns `groups`."""
    tables = filled.bindings.scopes[number]
    joins = tables.joins if tables.joins is not None else filled.graph.joins(tables.tables)
    if joins is None or any(join.side for join in joins):
        return False
    by_place: dict[int, set[str]] = {}
    for slot, qualifier in groups:
        table, column = filled.bindings.columns.get(slot, ("", ""))
        place = _place_of(tables, table, qualifier)
        if place is not None:
            by_place.setdefault(place, set()).add(column)
    return any(
        _is_key(filled.graph, tables.tables[place], columns) and not _multiplied(filled, tables, joins, place)
        for place, columns in by_place.items()
    )


def _is_key(graph: KeyGraph, table: str, columns: set[str]) -> bool:
    found = graph.schema.table(table)
    primary = set(found.primary_key) if found is not None else set()
    return (bool(primary) and primary <= columns) or any(is_unique(graph, (table, column)) for column in columns)


def _multiplied(filled: Filled, tables: Tables, joins: tuple[Join, ...], place: int) -> bool:
    """Whether a row of the table at `place` can meet several rows of the tables joined to it."""
    edges: dict[int, list[tuple[int, bool]]] = {}
    for own, join in enumerate(joins, 1):
        for left, pairs in join.by_table().items():
            to_left = _is_key(filled.graph, tables.tables[left], {column for column, _ in pairs})
            to_own = _is_key(filled.graph, tables.tables[own], {column for _, column in pairs})
            edges.setdefault(own, []).append((left, to_left))
            edges.setdefault(left, []).append((own, to_own))
    reached, waiting = {place}, [place]
    while waiting:
        for other, unique in edges.get(waiting.pop(), ()):
            if other in reached:
                continue
            if not unique:
                return True
            reached.add(other)
            waiting.append(other)
    return len(reached) < len(tables.tables)  # a cross join multiplies


def _place_of(tables: Tables, table: str, qualifier: str) -> int | None:
    if "_" in qualifier:
        return int(qualifier.partition("_")[2]) - 1
    return tables.tables.index(table) if table in tables.tables else None


def _join_without_effect(filled: Filled) -> bool:
    """A joined table that is not mentioned: any parent (every row has one), or two tables and more."""
    for tables, slots in zip(filled.bindings.scopes, filled.mentioned, strict=False):
        names = tables.tables
        joins = tables.joins if tables.joins is not None else filled.graph.joins(names)
        if len(names) < 2 or len(set(names)) < len(names) or not joins or any(join.side for join in joins):
            continue
        if not all(slot == "*" or slot in filled.bindings.columns for slot in slots):
            continue
        used = {filled.bindings.columns[slot][0] for slot in slots if slot != "*"}
        degree = [0] * len(names)
        for own, join in enumerate(joins, 1):
            for at in {own, *(left for left, _, _ in join.equalities)}:
                degree[at] += 1
        idle = [at for at, name in enumerate(names) if name not in used and degree[at] == 1]
        if len(idle) > 1 or any(_leads_up(filled.graph, names, joins, at) for at in idle):
            return True
    return False


def _leads_up(graph: KeyGraph, names: tuple[str, ...], joins: tuple[Join, ...], at: int) -> bool:
    """Whether the table at the end of a join is the parent that the foreign key of the other one refers to."""
    for own, join in enumerate(joins, 1):
        for left, pairs in join.by_table().items():
            if at == own and graph.refers(names[left], names[own], pairs):
                return True
            if at == left and graph.refers(names[own], names[left], [pair[::-1] for pair in pairs]):
                return True
    return False


def _asks_what_it_says(filled: Filled) -> bool:
    """Selects, groups by or orders by a column alone that its own WHERE clause holds to one value."""
    for number, select in enumerate(filled.uses.selects):
        fixed = {
            condition.column
            for condition in filled.uses.conditions
            if condition.scope == number and condition.binding and condition.operator == "="
        }
        if fixed & {*select.groups, *select.orders}:
            return True
        if fixed and not select.others and set(select.outputs) <= fixed:
            return True
    return False


def _repeated_column(filled: Filled) -> bool:
    """The same column of the same table twice among the outputs of one SELECT."""
    for select in filled.uses.selects:
        names = [(filled.bindings.columns.get(slot), qualifier) for slot, qualifier in select.outputs]
        if len(set(names)) < len(names):
            return True
    return filled.uses.trivial


def _words_of_a_label(filled: Filled) -> bool:
    """Texts in the result (THEN 'old') that a label chose for its own columns."""
    return not filled.uses.words <= _WORDS_FOR_ANY


def _always_true(filled: Filled) -> bool:
    """A condition that every row meets, or two of which each row meets one."""
    if any(_holds(filled, condition) is True for condition in _judged(filled)):
        return True
    return any(covers(*pair) for group in _joined_by_or(filled) for pair in permutations(group, 2))


def _redundant(filled: Filled) -> bool:
    """Two conditions on one column that say no more than one of them: both `>`, or both `<`, or `=` and `<>`."""
    joined: dict[tuple[Place, int], list[Bound]] = {}
    for condition in _judged(filled):
        if condition.binding and (bound := _bound(filled, condition)) is not None:
            joined.setdefault((condition.column, condition.scope), []).append(bound)
    groups = [*joined.values(), *_joined_by_or(filled)]
    return any(alike(one[0], other[0]) for group in groups for one, other in combinations(group, 2))


def _joined_by_or(filled: Filled) -> Iterator[list[Bound]]:
    """The bounds on one column that OR joins."""
    judged = set(_judged(filled))
    for alternatives in filled.uses.alternatives:
        by_column: dict[Place, list[Bound]] = {}
        for condition in alternatives:
            if condition in judged and (bound := _bound(filled, condition)) is not None:
                by_column.setdefault(condition.column, []).append(bound)
        yield from by_column.values()


def _bound(filled: Filled, condition: Condition) -> Bound | None:
    """A comparison of a column with one value."""
    if condition.counted or condition.operator not in ("=", "!=", "<", "<=", ">", ">="):
        return None
    return condition.operator, _literals(filled, condition)[0]


def _always_empty(filled: Filled) -> bool:
    """A condition that no row can meet, or two that exclude each other; NOT IN (SELECT …) of a column with NULLs."""
    excluding = [column for slot in filled.uses.excluding if (column := filled.column(slot)) is not None]
    if any(column.nulls for column in excluding):
        return True
    if any(_holds(filled, condition) is False for condition in _judged(filled)):
        return True
    fixed: dict[tuple[Place, int], object] = {}
    lower: dict[tuple[Place, int], list[str | int | float]] = {}
    upper: dict[tuple[Place, int], list[str | int | float]] = {}
    for condition in _judged(filled):
        if not condition.binding or condition.operator in ("null", "not null", "in", "like"):
            continue
        values, at = _literals(filled, condition), (condition.column, condition.scope)
        if condition.operator == "=" and fixed.setdefault(at, values[0]) != values[0]:
            return True
        if condition.operator in (">", ">=", "between", "="):
            lower.setdefault(at, []).append(values[0])
        if condition.operator in ("<", "<=", "between", "="):
            upper.setdefault(at, []).append(values[-1])
    for at, lows in lower.items():
        if any(comparable(low, high) and low > high for low in lows for high in upper.get(at, ())):  # type: ignore[operator]
            return True
    return False


def _limit_without_effect(filled: Filled) -> bool:
    """LIMIT over one table that has no more rows than that."""
    for number, select in enumerate(filled.uses.selects):
        limit = filled.bindings.values.get(select.limit) if isinstance(select.limit, str) else select.limit
        tables = filled.bindings.scopes[number].tables if number < len(filled.bindings.scopes) else ()
        if isinstance(limit, int) and len(tables) == 1 and limit >= filled.graph.rows(tables[0]):
            return True
    return False


def _judged(filled: Filled) -> Iterator[Condition]:
    """The conditions whose values are known, and not a label's own words."""
    for condition in filled.uses.conditions:
        slots = [value for value in condition.values if isinstance(value, str)]
        if any(slot in filled.bindings.unsaid or slot not in filled.bindings.values for slot in slots):
            continue
        if condition.counted or condition.column[0] in filled.bindings.columns:
            yield condition


def _literals(filled: Filled, condition: Condition) -> list[str | int | float]:
    return [filled.bindings.values[value] if isinstance(value, str) else value for value in condition.values]


def _holds(filled: Filled, condition: Condition) -> bool | None:
    """True where every row meets a condition, False where none does, None where that depends or is not known."""
    values = _literals(filled, condition)
    if condition.counted:
        number = values[0]
        if not isinstance(number, int | float):
            return None
        least = {">": number + 1, ">=": number}.get(condition.operator)
        most = {"<": number - 1, "<=": number}.get(condition.operator)
        return True if least is not None and least <= 1 else False if most is not None and most < 1 else None
    name = filled.bindings.columns[condition.column[0]]
    column = filled.graph.column(name)
    outer = any(join.side for join in filled.bindings.scopes[condition.scope].joins or ())
    if column is None or outer:
        return None
    if condition.operator in ("null", "not null"):
        rows = filled.graph.rows(name[0])
        null = True if column.nulls == rows else False if not column.nulls else None
        return null if condition.operator == "null" or null is None else not null
    truth = _truth(condition, values, filled.values, name)
    return None if truth and column.nulls else truth


def _truth(condition: Condition, values: list[str | int | float], known: Values, name: ColumnName) -> bool | None:
    operator = condition.operator
    if operator in ("=", "!=", "in"):
        held = [known.holds(*name, value) for value in values]
        if not any(held) and None not in held:
            return operator == "!="
        if operator == "!=":
            return False if held[0] and len(known.column(*name)) == 1 else None
        return True if all(held) and len(known.column(*name)) == len(set(values)) else None
    bounds = known.bounds(*name)
    if operator == "like" or bounds is None or not all(comparable(bounds[0], value) for value in values):
        return None
    low, high = bounds
    return inside(operator, low, high, values[0], values[-1])


COLUMN_RULES: Mapping[str, Rule] = {
    "empty-table": _empty_table,
    "sum-of-identifier": _sum_of_identifier,
    "range-over-name": _range_over_name,
    "extreme-of-name": _extreme_of_name,
    "constant-column": _constant_column,
    "unrelated-comparison": _unrelated_comparison,
    "join-without-key": _join_without_key,
    "same-row-twice": _same_row_twice,
    "join-without-effect": _join_without_effect,
    "group-by-unique": _group_by_unique,
    "repeated-column": _repeated_column,
    "asks-what-it-says": _asks_what_it_says,
    "words-of-a-label": _words_of_a_label,
}
VALUE_RULES: Mapping[str, Rule] = {
    "always-true": _always_true,
    "always-empty": _always_empty,
    "redundant-condition": _redundant,
    "limit-without-effect": _limit_without_effect,
}
RULES: Mapping[str, Rule] = {**COLUMN_RULES, **VALUE_RULES}

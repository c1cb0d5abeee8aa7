"""What fills a template: columns near each other in the key graph, and values of the columns they are compared with.

The columns follow the distance in the key graph (Hu et al. 2023, arXiv 2212.08785), joins are derived from the keys.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import exp

from spftsql.databases.values import Values
from spftsql.synthesis.joins import ColumnName, KeyGraph
from spftsql.synthesis.rendering import Compiled
from spftsql.synthesis.self_joins import joins_itself, moved
from spftsql.synthesis.templates import Bindings, Slot, Tables, Template, Value

_FAR = 1.5  # how fast the weight of a table falls with its distance in the key graph
_LONGEST_PART = 7  # characters of a LIKE pattern that is taken for part of a word or date, such as 2024-05
_PARTS = {"year": re.compile(r"(\d{4})-\d"), "month": re.compile(r"\d{4}-(\d{2})")}
_MOST_TABLES = 4  # in one SELECT, bridges included


def new_columns(template: Template, compiled: Compiled, graph: KeyGraph, rng: random.Random) -> Bindings | None:
    """New columns: slots that shared a table share one again; linked slots keep to one domain of values."""
    model = rng.choice(template.bindings) if template.bindings else None
    groups: dict[str | int, list[Slot]] = {}
    for slot in template.slots:
        if slot.role == "column":
            at = model.columns[slot.name][0] if model else _first_scope(slot.name, compiled)
            groups.setdefault(at, []).append(slot)
    partners: dict[str, list[str]] = {}
    for left, right in compiled.links:
        partners.setdefault(left, []).append(right)
        partners.setdefault(right, []).append(left)
    chosen: dict[str | int, str] = {}
    placed: dict[int, Tables] = {}
    selves = _self_joins(model, compiled)
    if model is not None and selves:
        needs = {str(at): tuple((slot.kind, slot.key) for slot in group) for at, group in groups.items()}
        # Of a label's own it is not known here which end was the key (see `Sampler`).
        elsewhere = moved([model.scopes[number] for number in selves], needs, graph, rng) if not model.db_id else None
        if elsewhere is None:
            return None
        chosen.update(elsewhere[0])
        placed = dict(zip(selves, elsewhere[1], strict=True))
    columns: dict[str, ColumnName] = {}
    tables = list(chosen.values())
    for at, group in groups.items():
        among = [chosen[at]] if at in chosen else None
        found = _table_for(group, columns, tables, partners, graph, rng, among)
        if found is None:
            return None
        name, picked = found
        columns |= picked
        if at not in chosen:
            tables.append(name)
            chosen[at] = name
    scopes = []
    for number, derived in enumerate(compiled.derived):
        if number in placed:
            scopes.append(placed[number])
            continue
        wanted = list(dict.fromkeys(columns[s][0] for s in compiled.scope_slots[number] if s != "*"))
        before = model.scopes[number] if model else Tables(() if derived else ("",))
        seen = len(before.tables)
        if derived or not seen or any(join.side for join in before.joins or ()):
            again = _replaced(before, derived, chosen, graph)
            if again is None:
                return None
            scopes.append(again)
            continue
        if not wanted:
            wanted = [rng.choice(tables or [table.name for table in graph.schema.tables])]
        connected = graph.connect(wanted)
        while connected is not None and len(connected) < seen:
            near = graph.neighbours(connected)
            if not near:
                return None
            connected = graph.connect([*connected, rng.choice(near)])
        if connected is None or len(connected) > max(_MOST_TABLES, seen):
            return None
        scopes.append(Tables(connected))
    observed = model.values if model else {}
    return Bindings(graph.schema.db_id, columns, observed, tuple(scopes))


def _self_joins(model: Bindings | None, compiled: Compiled) -> list[int]:
    """The SELECTs that name a table of theirs more than once."""
    scopes = model.scopes if model is not None else ()
    return [number for number, scope in enumerate(scopes) if joins_itself(scope) and not compiled.derived[number]]


def _replaced(before: Tables, derived: bool, chosen: Mapping[str | int, str], graph: KeyGraph) -> Tables | None:
    """The same FROM clause over other tables, each at the place of the one whose slots it got; None if it cannot be."""
    names = tuple(chosen[table] for table in before.tables if table in chosen)
    if len(names) < len(before.tables):
        return None
    if derived or not names:
        return Tables(names)
    found = graph.joins(names)
    if found is None:
        return None
    return Tables(names, tuple(replace(j, side=o.side) for j, o in zip(found, before.joins or (), strict=True)))


def _first_scope(slot: str, compiled: Compiled) -> int:
    return next((number for number, slots in enumerate(compiled.scope_slots) if slot in slots), -1)


def _table_for(
    group: Sequence[Slot],
    columns: Mapping[str, ColumnName],
    tables: Sequence[str],
    partners: Mapping[str, Sequence[str]],
    graph: KeyGraph,
    rng: random.Random,
    among: Sequence[str] | None,
) -> tuple[str, dict[str, ColumnName]] | None:
    """A table near `tables`, or one of `among`, and a column of it for every slot of the group; None if none fits."""
    names = list(graph.tables_with(tuple((slot.kind, slot.key) for slot in group))) if among is None else list(among)
    weights = [_nearness(name, tables, graph) for name in names] if tables else [1.0] * len(names)
    while any(weights):
        at = rng.choices(range(len(names)), weights=weights)[0]
        picked = _pick(names[at], group, columns, partners, graph, rng)
        if picked is not None:
            return names[at], picked
        weights[at] = 0.0
    return None


def _pick(
    table: str,
    group: Sequence[Slot],
    columns: Mapping[str, ColumnName],
    partners: Mapping[str, Sequence[str]],
    graph: KeyGraph,
    rng: random.Random,
) -> dict[str, ColumnName] | None:
    """A column of `table` for every slot of the group, each another one; None where there are not enough."""
    picked: dict[str, ColumnName] = {}
    taken = set(columns.values())
    for slot in group:
        choices = [column for column in graph.columns(table, slot.kind, slot.key) if column not in taken]
        for partner in partners.get(slot.name, ()):
            found = columns.get(partner) or picked.get(partner)
            if found is not None:
                domain = graph.domain(found)
                name = domain[1].lower()
                choices = [c for c in choices if graph.domain(c) == domain or c[1].lower() == name]
        if not choices:
            return None
        column = choices[int(rng.random() * len(choices))]
        picked[slot.name] = column
        taken.add(column)
    return picked


def _nearness(table: str, others: Sequence[str], graph: KeyGraph) -> float:
    distance = graph.distance(table, others)
    return exp(-_FAR * distance) if distance is not None else 0.0


def draw_values(template: Template, bindings: Bindings, values: Values, rng: random.Random) -> dict[str, Value] | None:
    """A literal for every value slot; equalities over one table come from one row, so that they can hold at once."""
    slots = [slot for slot in template.slots if slot.role == "value"]
    drawn: dict[str, Value] = {name: bindings.values[name] for name in sorted(bindings.unsaid)}
    for names, columns in _together(slots, bindings):
        row = values.draw_row(rng, columns[0][0], [column for _, column in columns])
        if row is not None:
            drawn |= dict(zip(names, row, strict=True))
    for slot in slots:
        if slot.name in drawn:
            continue
        columns = [bindings.columns[name] for name in slot.of]
        observed = bindings.values.get(slot.name)
        for _ in range(5):
            value = _draw_value(slot, columns, observed, values, rng)
            if value is None:
                return None
            if f"GLOB '{slot.name}'" in template.sql:
                value = f"*{value}*"  # its wildcards were part of the value
            if not any(drawn[s.name] == value for s in slots if s.name in drawn and s.of == slot.of):
                break
        else:
            return None
        drawn[slot.name] = value
    for low, high in pairwise(slots):
        if low.operator == high.operator == "between" and low.of == high.of:
            ends = sorted((drawn[low.name], drawn[high.name]), key=lambda v: (isinstance(v, str), v))
            drawn[low.name], drawn[high.name] = ends
    return drawn


def _together(slots: Sequence[Slot], bindings: Bindings) -> list[tuple[list[str], list[ColumnName]]]:
    """Equality slots on different columns of one table, by table."""
    by_table: dict[str, dict[ColumnName, str]] = {}
    for slot in slots:
        if slot.operator == "equal" and len(slot.of) == 1 and slot.name not in bindings.unsaid:
            column = bindings.columns[slot.of[0]]
            by_table.setdefault(column[0], {}).setdefault(column, slot.name)
    return [(list(found.values()), list(found)) for found in by_table.values() if len(found) > 1]


def _draw_value(
    slot: Slot, columns: Sequence[ColumnName], observed: Value | None, values: Values, rng: random.Random
) -> Value | None:
    if slot.operator == "count":
        most = 2 * observed if isinstance(observed, int) else 0
        return rng.randint(1, max(3, most))
    if slot.operator == "limit":
        return rng.randint(2, 10)
    if slot.operator == "free" or not columns:
        return observed
    if slot.operator in ("range", "between"):
        return values.threshold(rng, *columns[0])
    value = values.draw(rng, columns)
    if slot.operator in _PARTS:
        part = _PARTS[slot.operator].match(str(value))
        return part.group(1) if part else None
    if slot.operator == "like" and value is not None:
        word = rng.choice(str(value).split() or [str(value)])
        return word[: len(observed)] if isinstance(observed, str) and len(observed) <= _LONGEST_PART else word
    return value

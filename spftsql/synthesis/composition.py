"""Templates that no label has: known ones changed by mutations, each shown to give SQL of this very structure.

With values linked, new values on known structures teach a model nothing more; structures and columns that the labels do
not contain are what synthesis can add. A derived template keeps the ids of its parents, and is kept where some database
can be filled with it, the statement obeys the rules, and its own structure is the template again.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from spftsql.databases.schema import Schema
from spftsql.databases.values import OpenValues
from spftsql.records import content_hash
from spftsql.sandbox.location import Location
from spftsql.synthesis.canonical import canonical_sql, parse
from spftsql.synthesis.filling import fill
from spftsql.synthesis.hardness import hardness
from spftsql.synthesis.library import mixed, shape
from spftsql.synthesis.mutations import ONE, TWO, Part, is_simple, numbered
from spftsql.synthesis.templates import Template, extract

_TRIES = 8  # fills that a derived template may take until one shows that it works
_FRUITLESS = 300  # draws in a row without a new template, after which there are no more
_MOST = 500  # derived templates
_DEPTH = 0.3  # share of draws whose parent is itself derived
_KIND = re.compile(r"\bcol_[a-z]+_((?:key|fk|part)_)?(?=\d+\b)")


def compose(
    pool: Sequence[Template],
    schemas: Mapping[str, Schema],
    databases: Mapping[str, Path | Location],
    seed: int,
    most: int = _MOST,
) -> list[Template]:
    """Up to `most` templates derived from `pool`; none of its structure is in the pool. The same for the same seed.

    Parents are drawn by their counts; a derived template's count is how often it was arrived at, so common structures
    lead to common ones.
    """
    rng = random.Random(f"compose {seed}")
    values, names = OpenValues(databases), sorted(schemas)
    parts = [(template, _parts(template, schemas)) for template in pool]
    parents = [(template, found) for template, found in parts if found]
    known = {_form(template.sql) for template in pool}
    derived: dict[str, Template] = {}
    grown: list[tuple[Template, list[Part]]] = []
    refused: set[str] = set()
    cumulative = list(accumulate(template.count for template, _ in parents))
    mutations = [*ONE, *TWO]
    fruitless = 0

    def parent() -> tuple[Template, Part]:
        deep = grown and rng.random() < _DEPTH
        template, found = rng.choice(grown) if deep else rng.choices(parents, cum_weights=cumulative)[0]
        return template, rng.choice(found)

    try:
        while parents and len(derived) < most and fruitless < _FRUITLESS:
            fruitless += 1
            name = rng.choice(mutations)
            first, part = parent()
            if name in ONE:
                ancestors: tuple[Template, ...] = (first,)
                changed = ONE[name](part, rng)
            else:
                second, other = (first, part) if name == "combine" and rng.random() < 0.3 else parent()
                ancestors, changed = (first, second), TWO[name](part, other, rng)
            if changed is None:
                continue
            sql, slots, bindings = numbered(changed)
            form = _form(sql)
            if form in derived:
                derived[form] = replace(derived[form], count=derived[form].count + 1)
                continue
            if form in known or form in refused:
                continue
            lineage = tuple(dict.fromkeys(template.id for template in ancestors))
            template = Template(content_hash(sql), sql, slots, 1, "", (bindings,), lineage)
            level = _shown(template, names, schemas, values, rng)
            if level is None:
                refused.add(form)
                continue
            derived[form] = replace(template, hardness=level)
            fruitless = 0
            if is_simple(changed) and len(slots) <= 6:
                grown.append((template, _parts(template, schemas)))
    finally:
        values.close()
    return sorted(derived.values(), key=lambda template: (-template.count, template.id))


def with_composed(
    pool: Sequence[Template],
    share: float,
    schemas: Mapping[str, Schema],
    databases: Mapping[str, Path | Location],
    seed: int,
    most: int = _MOST,
) -> list[Template]:
    """`pool`, and templates derived from it so that they are drawn with probability `share`."""
    if share <= 0 or not pool:
        return list(pool)
    return mixed(pool, compose(pool, schemas, databases, seed, most), share)


def _parts(template: Template, schemas: Mapping[str, Schema]) -> list[Part]:
    """The template with each of its shapes that a mutation can change."""
    found: dict[str, Part] = {}
    slots = {slot.name: slot for slot in template.slots}
    for bindings in template.bindings:
        if bindings.db_id and bindings.db_id not in schemas:
            continue
        one = shape(bindings, template, schemas[bindings.db_id]) if bindings.db_id else bindings
        columns = {slot: table for slot, (table, _) in one.columns.items()}
        part = Part(template.sql, slots, columns, one.values, one.scopes)
        if is_simple(part):
            found.setdefault(repr((columns, one.scopes)), part)
    return list(found.values())


def _shown(
    template: Template, names: Sequence[str], schemas: Mapping[str, Schema], values: OpenValues, rng: random.Random
) -> str | None:
    """The hardness of a statement that some database gave, whose own template is this one; None where none did."""
    for _ in range(_TRIES):
        name = rng.choice(names)
        try:
            filled = fill(template, (), schemas[name], values[name], rng, 1.0)
            if filled is None:
                continue
            sql, _ = filled
            if canonical_sql(sql, schemas[name]) != sql:
                return None
            if _form(extract(sql, schemas[name])[0].sql) == _form(template.sql):
                return hardness(parse(sql))
        except ValueError:
            return None
    return None


def _form(sql: str) -> str:
    """A template's text without the kinds of keys, which do not tell structures apart."""
    return _KIND.sub(lambda match: f"col_{match.group(1)}" if match.group(1) else match.group(), sql)

"""Templates filled from a database: new values for columns that labels used, or new columns near each other.

Sampling follows the training distribution (a template's count) times a weight. What is drawn is
`spftsql.synthesis.drawing`; what is dropped before it is executed, and why, `spftsql.synthesis.rules`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from spftsql.databases.schema import Schema
from spftsql.databases.values import OpenValues, Values
from spftsql.records import Statement, content_hash
from spftsql.sandbox.location import Location
from spftsql.synthesis.checks import Checks, checks_of, settled
from spftsql.synthesis.dialects import in_dialect
from spftsql.synthesis.drawing import draw_values, new_columns
from spftsql.synthesis.joins import key_graph
from spftsql.synthesis.library import shape
from spftsql.synthesis.rendering import compile_template, render
from spftsql.synthesis.rules import Filled, broken_column_rule, broken_value_rule
from spftsql.synthesis.seen import Seen, key_of
from spftsql.synthesis.templates import Bindings, Template
from spftsql.synthesis.uses import uses_of

_FRUITLESS = 200  # fills of a template in a row that gave nothing, before it is given up
_EXHAUSTED = 60  # the same for one that has given something: most of what it can give is there
_THRESHOLDS = ("range", "between", "count", "limit")  # values of which others can ask for the same


def fill(
    template: Template,
    bindings_pool: Sequence[Bindings],
    schema: Schema,
    values: Values,
    rng: random.Random,
    column_substitution: float,
) -> tuple[str, Bindings] | None:
    """One statement of `template` over `schema`, in canonical form, and what it was filled with.

    With probability `column_substitution` (or where `bindings_pool`, the bindings seen with this database, is empty)
    the columns are drawn anew and the joins derived from the keys; else one of the bindings keeps its columns and gets
    new values, except where the label's question does not say the value ("major cities": population > 150000).
    None where this draw gave nothing: no fitting columns, no values, no way to join, or a rule against it.
    """
    drawn = _drawn(template, bindings_pool, schema, values, rng, column_substitution)
    if isinstance(drawn, str):
        return None
    sql, reason = _written(template, drawn)
    return None if reason else (sql, drawn.bindings)


def _drawn(
    template: Template,
    bindings_pool: Sequence[Bindings],
    schema: Schema,
    values: Values,
    rng: random.Random,
    column_substitution: float,
) -> Filled | str:
    """What fills the template this time; or why nothing does."""
    graph, compiled, uses = key_graph(schema), compile_template(template.sql), uses_of(template.sql)
    new = not bindings_pool or rng.random() < column_substitution
    bindings = new_columns(template, compiled, graph, rng) if new else rng.choice(bindings_pool)
    if bindings is None:
        return "no-columns"
    filled = Filled(uses, bindings, graph, values, compiled.scope_slots)
    if new and (rule := broken_column_rule(filled)) is not None:
        return rule
    drawn = draw_values(template, bindings, values, rng)
    return replace(filled, bindings=replace(bindings, values=drawn)) if drawn is not None else "no-values"


def _written(template: Template, filled: Filled) -> tuple[str, str]:
    """The statement in canonical form; or nothing, and why."""
    if (rule := broken_value_rule(filled)) is not None:
        return "", rule
    sql = render(compile_template(template.sql), filled.bindings, filled.graph)
    return (sql, "") if sql is not None else ("", "no-join")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A statement that nothing speaks against yet.

    `structure` is a key of its template, columns and tables on its database (all but the values); `question` of all
    this and of the values that name something, leaving out those that bound something (`>`, BETWEEN, COUNT, LIMIT).
    """

    statement: Statement
    structure: int
    question: int
    limit: int | None  # of its outermost SELECT
    checks: Checks


class Sampler:
    """Draws statements, each at most once, and learns from `tell` which templates are worth drawing on.

    A template is drawn by its count times its weight (1 where `weights` has none), and given up after many draws in a
    row that were told to be of no use. The same calls with the same seed give the same statements. `counts` says how
    many draws came to nothing, by reason: a rule's name, or `no-columns`, `no-values`, `no-join` (nothing to fill
    with), `dialect` (no equal in the schema's dialect), `repeated` (drawn before), `excluded` (a label), `too-slow`
    (its template with those columns did not end in time), `structure` (`per_structure` of these are accepted).
    """

    def __init__(
        self,
        pool: Sequence[Template],
        schemas: Mapping[str, Schema],
        databases: Mapping[str, Path | Location],
        seed: int,
        column_substitution: float,
        weights: Mapping[str, float] | None = None,
        exclude: Container[str] = (),
        per_structure: int = 0,
    ) -> None:
        """`exclude` is canonical SQL; `per_structure` is 0 for no limit (at most 255)."""
        self.counts: Counter[str] = Counter()
        self._rng = random.Random(f"synthesize {seed}")
        self._seed, self._substitution, self._exclude = seed, column_substitution, exclude
        self._schemas, self._names = schemas, sorted(schemas)
        self._values = OpenValues(databases)
        self._per_structure = per_structure
        self._known: dict[str, dict[str, list[Bindings]]] = {}
        self._alive: list[Template] = []
        self._weights: list[float] = []
        for template in pool:
            known: dict[str, list[Bindings]] = {}
            for bindings in template.bindings:
                if bindings.db_id in schemas:
                    known.setdefault(bindings.db_id, []).append(bindings)
            template = _with_roles(template, schemas)
            weight = template.count * (weights.get(template.id, 1.0) if weights is not None else 1.0)
            fillable = known or column_substitution > 0 or any(not b.db_id for b in template.bindings)
            if weight > 0 and fillable:
                self._known[template.id] = known
                self._alive.append(template)
                self._weights.append(weight)
        self._fruitless = dict.fromkeys(self._known, 0)
        self._cumulative = list(accumulate(self._weights))
        self._fillings, self._drawn, self._structures = Seen(), Seen(), Seen()
        self._slow: set[int] = set()  # structures

    @property
    def bytes(self) -> int:
        """The memory that remembering what was drawn takes."""
        return self._fillings.bytes + self._drawn.bytes + self._structures.bytes

    @property
    def databases(self) -> int:
        """The number of databases that are drawn from."""
        return len(self._names)

    def draw(self) -> Candidate | None:
        """The next statement; None when every template is given up."""
        while self._alive:
            template = self._rng.choices(self._alive, cum_weights=self._cumulative)[0]
            candidate = self._draw(template)
            if isinstance(candidate, Candidate):
                return candidate
            self.counts[candidate] += 1
            self._of_no_use(template.id)
        return None

    def _draw(self, template: Template) -> Candidate | str:
        rng, known = self._rng, self._known[template.id]
        if known and rng.random() >= self._substitution:
            db_id, substitution = rng.choice([name for name, found in known.items() for _ in found]), 0.0
        else:
            db_id, substitution = rng.choice(self._names), 1.0
        schema = self._schemas[db_id]
        filled = _drawn(template, known.get(db_id, ()), schema, self._values[db_id], rng, substitution)
        if isinstance(filled, str):
            return filled
        bindings = filled.bindings
        structure = key_of(db_id, template.id, repr(bindings.columns), repr(bindings.scopes))
        if structure in self._slow:
            return "too-slow"
        if self._per_structure and self._structures.count(structure) >= self._per_structure:
            return "structure"
        if self._fillings.add(key_of(str(structure), repr(bindings.values))):
            return "repeated"
        sql, reason = _written(template, filled)
        if reason:
            return reason
        if self._drawn.add(key_of(db_id, sql)):
            return "repeated"  # by way of another template
        if sql in self._exclude:
            return "excluded"
        try:
            text = in_dialect(sql, schema)
        except ValueError:
            return "dialect"
        statement = Statement(content_hash(db_id, sql), db_id, text, template.id, bindings.to_json(), self._seed)
        named = [
            str(bindings.values[slot.name])
            for slot in template.slots
            if slot.role == "value" and slot.operator not in _THRESHOLDS and slot.name in bindings.values
        ]
        limit = uses_of(template.sql).selects[0].limit
        number = bindings.values.get(limit) if isinstance(limit, str) else limit
        number = number if isinstance(number, int) else None
        return Candidate(
            statement,
            structure,
            key_of(str(structure), *named),
            number,
            _checks(template, bindings, schema, self._values[db_id]),
        )

    def tell(self, candidate: Candidate, accepted: bool, in_time: bool = True) -> bool:
        """Whether a statement is wanted; False also where `per_structure` like it are accepted already.

        What did not end `in_time` hardly would with other values: its like is not drawn again.
        """
        identity = candidate.statement.template
        if not in_time:
            self._slow.add(candidate.structure)
        if accepted and self._per_structure and self._structures.add(candidate.structure) >= self._per_structure:
            accepted = False
        if accepted:
            if identity in self._fruitless:
                self._fruitless[identity] = _FRUITLESS - _EXHAUSTED
        else:
            self._of_no_use(identity)
        return accepted

    def _of_no_use(self, template: str) -> None:
        if template not in self._fruitless:
            return
        self._fruitless[template] += 1
        if self._fruitless[template] < _FRUITLESS:
            return
        del self._fruitless[template]
        kept = [(t, w) for t, w in zip(self._alive, self._weights, strict=True) if t.id != template]
        self._alive, self._weights = [t for t, _ in kept], [w for _, w in kept]
        self._cumulative = list(accumulate(self._weights))


def _with_roles(template: Template, schemas: Mapping[str, Schema]) -> Template:
    """The template, its self-joins given by the key roles of what they join: so they can be drawn elsewhere."""
    bindings = []
    for one in template.bindings:
        if one.db_id in schemas and any(len(set(scope.tables)) < len(scope.tables) for scope in one.scopes):
            bindings.append(replace(shape(one, template, schemas[one.db_id]), values=one.values))
        else:
            bindings.append(one)
    return replace(template, bindings=tuple(bindings))


def _checks(template: Template, bindings: Bindings, schema: Schema, values: Values) -> Checks:
    """The checks for what fills a template with these bindings, in the schema's dialect."""
    graph = key_graph(schema)
    checks = settled(checks_of(template.sql), uses_of(template.sql).selects[0], bindings, graph, values)

    def filled(all_texts: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        rendered = [[render(compile_template(text), bindings, graph) for text in texts] for texts in all_texts]
        return tuple(tuple(in_dialect(sql, schema) for sql in sqls if sql is not None) for sqls in rendered)

    if schema.dialect != "sqlite" and checks.pairs:  # they are written for SQLite
        checks = replace(checks, open=True, choices=(), beside=(), sums=())
    choices, beside, sums = map(filled, (checks.choices, checks.beside, checks.sums))
    return replace(checks, choices=choices, beside=beside, sums=sums, conditions=filled(checks.conditions))


def synthesize(
    pool: Sequence[Template],
    schemas: Mapping[str, Schema],
    databases: Mapping[str, Path | Location],
    count: int,
    seed: int,
    column_substitution: float,
    weights: Mapping[str, float] | None,
    exclude: Container[str],
    per_structure: int = 0,
) -> Iterator[Statement]:
    """Up to `count` distinct statements, none of them in `exclude` (canonical SQL); the same for the same seed.

    Their SQL is in the dialect of their schema, and is not executed: `spftsql.synthesis.accepting` does that. The
    iterator ends early when all templates are given up (see `Sampler`).
    """
    sampler = Sampler(pool, schemas, databases, seed, column_substitution, weights, exclude, per_structure)
    made = 0
    while made < count and (candidate := sampler.draw()) is not None:
        if sampler.tell(candidate, accepted=True):
            made += 1
            yield candidate.statement

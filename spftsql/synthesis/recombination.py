"""New pairs from labelled ones, question and SQL changed together; no model phrases them.

Three changes. A value of one pair gives way to what another pair asks for: "what is the capital of texas" and "which
state has the longest river" give "what is the capital of the state that has the longest river", and the SQL of the
second is nested in that of the first (Jia and Liang 2016, arXiv 1606.03622, whole phrases). A column gives way to
another of its table and kind where the question says its name: "the state with the largest population", "… area". And
an extreme gives way to the other one: "… the smallest population", MIN for MAX. What results may be changed again. So
the new pairs have structures and columns that no label has, in words that people used.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from sqlglot import Dialect, TokenType, exp

from spftsql.databases.schema import Schema
from spftsql.linking.words import stems_of, words_of
from spftsql.records import Example, Statement, content_hash
from spftsql.synthesis.canonical import canonicalize, write
from spftsql.synthesis.dialects import in_dialect
from spftsql.synthesis.joins import ColumnName, key_graph
from spftsql.synthesis.phrases import (
    asked_phrase,
    name_said_once,
    opposite_extreme,
    put_phrase,
    said_once,
    schema_stems,
)
from spftsql.synthesis.scopes import Resolved
from spftsql.synthesis.templates import take_apart

EXECUTED_PER_PAIR = 1.6  # how many new pairs are executed for each one wanted: some results say nothing
_FRUITLESS = 500  # draws in a row that give nothing new, after which there are no more
_DEEPER = 0.3  # share of draws in which a recombined pair may be changed again
_COLUMN, _EXTREME = 0.3, 0.1  # shares of draws that change a column, or an extreme
_PER_STRUCTURE = 3  # pairs whose SQL differs in literals only
_WORDS = 24  # of a question, at most
_CHARACTERS = 400  # of a statement, at most
_UNKNOWN = 0.5  # the weight of a template that nothing was asked about
_HOLE = "z0hole0z"  # where a nested statement goes
_LITERALS = {TokenType.STRING, TokenType.NUMBER}


@dataclass(frozen=True)
class Recombined:
    """A new pair. `parents` are the ids of the labels that it was made from, `templates` those of their templates."""

    statement: Statement
    question: str
    parents: tuple[str, ...]
    templates: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Pair:
    """A pair and what it is made of; what can be changed in it is looked for when it is drawn."""

    schema: Schema
    question: str
    sql: str  # canonical
    template: str
    parents: Mapping[str, str]  # the labels that it was made from, with their templates
    asked: tuple[str, ColumnName] | None  # what it asks for as a phrase, and the domain of the column

    @cached_property
    def resolved(self) -> Resolved:
        return canonicalize(self.sql, self.schema)

    @cached_property
    def names(self) -> dict[int, ColumnName]:
        return _names(self.resolved)

    @cached_property
    def openings(self) -> tuple[tuple[str, ColumnName], ...]:
        """The values that may give way, each with the domain of its column."""
        return tuple(_openings(self))

    @cached_property
    def columns(self) -> tuple[tuple[ColumnName, tuple[ColumnName, ...]], ...]:
        """The columns that the question says by name, each with what may replace it."""
        return tuple(_columns(self))

    @cached_property
    def holes(self) -> dict[str, str]:
        """The SQL by the value that gives way, with `_HOLE` where another statement is to be nested."""
        return {}


class _Pairs:
    """Pairs to draw from: all alike without `weights`, else each by its weight."""

    def __init__(self, weights: Mapping[str, float] | None) -> None:
        self._weights = weights
        self._pairs: list[_Pair] = []
        self._sums: list[float] = []
        self._asking: dict[tuple[str, ColumnName], list[_Pair]] = {}

    def __len__(self) -> int:
        return len(self._pairs)

    def add(self, pair: _Pair) -> None:
        self._pairs.append(pair)
        self._sums.append((self._sums[-1] if self._sums else 0.0) + self._weight(pair))
        if pair.asked is not None:
            self._asking.setdefault((pair.schema.db_id, pair.asked[1]), []).append(pair)

    def draw(self, rng: random.Random) -> _Pair:
        if self._weights is None:
            return rng.choice(self._pairs)
        return rng.choices(self._pairs, cum_weights=self._sums)[0]

    def asking(self, domain: ColumnName, other: _Pair, rng: random.Random) -> _Pair | None:
        """One other than `other`, of its database, that asks for values of `domain`."""
        found = [pair for pair in self._asking.get((other.schema.db_id, domain), ()) if pair is not other]
        if not found:
            return None
        if self._weights is None:
            return rng.choice(found)
        return rng.choices(found, [self._weight(pair) for pair in found])[0]

    def _weight(self, pair: _Pair) -> float:
        """That of its template; where nothing is known of it, the mean of those that it was made from."""
        weights = self._weights
        if weights is None:
            return 1.0
        if pair.template in weights:
            return weights[pair.template]
        return sum(weights.get(template, _UNKNOWN) for template in pair.parents.values()) / len(pair.parents)


def recombine(
    labels: Sequence[Example],
    schemas: Mapping[str, Schema],
    seed: int,
    exclude: Collection[str] = (),
    weights: Mapping[str, float] | None = None,
) -> Iterator[Recombined]:
    """New pairs until nothing new is found; `exclude` is canonical SQL. The same for the same seed.

    Pairs are drawn by the `weights` of their templates, all alike without. Nothing is executed here. Labels that are
    of another form than the changes need take no part.
    """
    rng = random.Random(f"recombine {seed}")
    nouns = {name: schema_stems(schema) for name, schema in schemas.items()}
    pairs, grown = _Pairs(weights), _Pairs(weights)
    seen, tried = set(exclude), set[tuple[str, str]]()
    structures = Counter[str]()
    for label in labels:
        pair = _label(label, schemas[label.db_id], nouns[label.db_id]) if label.db_id in schemas else None
        if pair is not None:
            pairs.add(pair)
            seen.add(pair.sql)
            structures[_structure(pair.sql)] += 1
    fruitless = 0

    def drawn() -> _Pairs:
        return grown if grown and rng.random() < _DEEPER else pairs

    while pairs and fruitless < _FRUITLESS:
        fruitless += 1
        first = drawn().draw(rng)
        schema, what = first.schema, rng.random()
        if what < _EXTREME:
            changed = _other_extreme(first)
        elif what < _EXTREME + _COLUMN:
            changed = _other_column(first, rng)
        else:
            changed = _nested(first, drawn(), nouns[schema.db_id], rng)
        if changed is None or (schema.db_id, changed[1]) in tried:
            continue
        question, sql, parents = changed
        tried.add((schema.db_id, sql))
        try:
            resolved = canonicalize(sql, schema)
        except ValueError:
            continue
        sql = write(resolved.tree)
        if sql in seen:
            continue
        seen.add(sql)
        question, structure = " ".join(question.split()), _structure(sql)
        structures[structure] += 1
        long = len(sql) > _CHARACTERS or len(question.split()) > _WORDS
        if long or structures[structure] > _PER_STRUCTURE:
            continue
        try:
            text = in_dialect(sql, schema)
        except ValueError:
            continue
        pair = _pair(question, sql, resolved, schema, nouns[schema.db_id], parents)
        grown.add(pair)
        fruitless = 0
        statement = Statement(content_hash(schema.db_id, sql), schema.db_id, text, pair.template, "", seed)
        yield Recombined(statement, question, tuple(parents), tuple(dict.fromkeys(parents.values())))


def _label(label: Example, schema: Schema, nouns: frozenset[str]) -> _Pair | None:
    """None where the SQL cannot be read."""
    try:
        resolved = canonicalize(label.sql, schema)
    except ValueError:
        return None
    pair = _pair(label.question, write(resolved.tree), resolved, schema, nouns, {})
    return replace(pair, parents={label.id: pair.template})


def _pair(
    question: str, sql: str, resolved: Resolved, schema: Schema, nouns: frozenset[str], parents: Mapping[str, str]
) -> _Pair:
    """The pair of a statement, whose tree is taken apart."""
    phrase, domain = asked_phrase(question, nouns), _asked_domain(resolved, schema)
    asked = (phrase, domain) if phrase is not None and domain is not None else None
    return _Pair(schema, question, sql, _template(sql, resolved, schema), parents, asked)


def _template(sql: str, resolved: Resolved, schema: Schema) -> str:
    """The id of a statement's template, which labels and filled statements may have too; of its structure without."""
    try:
        return take_apart(resolved, schema)[0].id
    except ValueError:
        return content_hash(_structure(sql))


def _structure(sql: str) -> str:
    """A statement without its literals."""
    tokens = Dialect.get_or_raise("sqlite").tokenize(sql)
    return "\0".join("?" if token.token_type in _LITERALS else token.text for token in tokens)


def _names(resolved: Resolved) -> dict[int, ColumnName]:
    """The table column behind every column node that stands for one directly."""
    return {
        id(reference.node): (reference.source.table.name, reference.column)
        for reference in resolved.references
        if reference.source is not None and reference.source.table is not None and isinstance(reference.column, str)
    }


def _asked_domain(resolved: Resolved, schema: Schema) -> ColumnName | None:
    """The domain of the one column that a statement gives."""
    tree = resolved.tree
    if not isinstance(tree, exp.Select) or len(tree.expressions) != 1:
        return None
    name = _names(resolved).get(id(tree.expressions[0]))
    return key_graph(schema).domain(name) if name is not None else None


def _openings(pair: _Pair) -> Iterator[tuple[str, ColumnName]]:
    """Texts that the question says once and that the SQL only says columns of one domain are, or are not."""
    graph, names = key_graph(pair.schema), pair.names
    found: dict[str, set[ColumnName | None]] = {}
    for literal in pair.resolved.tree.find_all(exp.Literal):
        if not literal.is_string:
            continue
        parent = literal.parent
        name = names.get(id(parent.this)) if isinstance(parent, exp.EQ | exp.NEQ) else None
        found.setdefault(str(literal.this), set()).add(graph.domain(name) if name is not None else None)
    for value, domains in found.items():
        (domain, *more) = domains
        if domain is not None and not more and value and said_once(pair.question, value) is not None:
            yield value, domain


def _columns(pair: _Pair) -> Iterator[tuple[ColumnName, tuple[ColumnName, ...]]]:
    """Columns that are said by name and compared with no value, each with those of its table, kind and role.

    One that the question says as part of a longer name ("population density"), or that belongs together with another of
    the statement (the highest point is where the highest elevation is), stays.
    """
    graph, names, question = key_graph(pair.schema), pair.names, pair.question
    used = set(names.values())
    bound = {
        names.get(id(side))
        for literal in pair.resolved.tree.find_all(exp.Literal)
        if literal.parent is not None
        for side in literal.parent.args.values()
        if isinstance(side, exp.Column)
    }
    for name in sorted(used - bound):
        table, place = pair.schema.table(name[0]), name_said_once(question, name[1])
        column = table.column(name[1]) if table is not None else None
        if table is None or column is None or place is None or graph.role(name):
            continue
        own = set(stems_of(name[1]))
        if any(own & set(stems_of(other)) for _, other in used - {name}) or _beside(question, place) & {
            word for other in table.columns for word in stems_of(other.name)
        }:
            continue
        others = tuple(
            (table.name, other.name)
            for other in table.columns
            if other.kind == column.kind and not graph.role((table.name, other.name))
            and (table.name, other.name) not in used and other.distinct > 1
        )  # fmt: skip
        if others:
            yield name, others


def _beside(question: str, place: tuple[int, int]) -> set[str]:
    """The stems of the words before and after a place."""
    return {*stems_of(question[: place[0]])[-1:], *stems_of(question[place[1] :])[:1]}


def _nested(
    outer: _Pair, others: _Pairs, nouns: Collection[str], rng: random.Random
) -> tuple[str, str, Mapping[str, str]] | None:
    """A value of `outer` replaced by what one of the others asks for."""
    if not outer.openings:
        return None
    value, domain = rng.choice(outer.openings)
    inner, place = others.asking(domain, outer, rng), said_once(outer.question, value)
    if inner is None or inner.asked is None or place is None:
        return None
    if value not in outer.holes:
        outer.holes[value] = _with_hole(outer.resolved.tree, value)
    sql = outer.holes[value].replace(_HOLE, inner.sql)
    return put_phrase(outer.question, place, inner.asked[0], nouns), sql, {**outer.parents, **inner.parents}


def _with_hole(tree: exp.Query, value: str) -> str:
    """The SQL of a tree in which columns are among those of a hole instead of equal to `value`."""
    tree = tree.copy()
    for literal in list(tree.find_all(exp.Literal)):
        comparison = literal.parent
        if literal.is_string and literal.this == value and isinstance(comparison, exp.EQ | exp.NEQ):
            inside = exp.In(this=comparison.this, expressions=[exp.column(_HOLE)])
            comparison.replace(exp.Not(this=inside) if isinstance(comparison, exp.NEQ) else inside)
    return write(tree)


def _other_column(pair: _Pair, rng: random.Random) -> tuple[str, str, Mapping[str, str]] | None:
    """A column of `pair`, and its name in the question, replaced by another."""
    if not pair.columns:
        return None
    old, others = rng.choice(pair.columns)
    new, place = rng.choice(others), name_said_once(pair.question, old[1])
    assert place is not None  # `_columns` found it
    tree = pair.resolved.tree.copy()
    for node, twin in zip(pair.resolved.tree.find_all(exp.Column), list(tree.find_all(exp.Column)), strict=True):
        if pair.names.get(id(node)) == old:
            twin.set("this", exp.to_identifier(new[1]))
    question = pair.question[: place[0]] + " ".join(words_of(new[1])) + pair.question[place[1] :]
    return question, write(tree), pair.parents


def _other_extreme(pair: _Pair) -> tuple[str, str, Mapping[str, str]] | None:
    """The one extreme of `pair` turned round: MIN for MAX, or the other end of an order."""
    question = opposite_extreme(pair.question, {word for _, name in pair.names.values() for word in stems_of(name)})
    if question is None:
        return None
    tree = pair.resolved.tree.copy()
    extremes = list(tree.find_all(exp.Max, exp.Min))
    ends = [order for order in tree.find_all(exp.Order) if order.parent is not None and order.parent.args.get("limit")]
    if extremes and not ends and len({node.sql() for node in extremes}) == 1:
        for node in extremes:
            node.replace((exp.Min if isinstance(node, exp.Max) else exp.Max)(this=node.this))
    elif not extremes and len(ends) == 1 and len(ends[0].expressions) == 1:
        ordered = ends[0].expressions[0]
        ordered.set("desc", not ordered.args.get("desc"))
    else:
        return None
    return question, write(tree), pair.parents

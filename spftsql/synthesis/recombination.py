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
from dataclasses import dataclass

from sqlglot import exp

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

EXECUTED_PER_PAIR = 1.4  # how many new pairs are executed for each one wanted: some results say nothing
_FRUITLESS = 500  # draws in a row that give nothing new, after which there are no more
_DEEPER = 0.3  # share of draws in which a recombined pair may be changed again
_COLUMN, _EXTREME = 0.3, 0.1  # shares of draws that change a column, or an extreme
_PER_STRUCTURE = 3  # pairs whose SQL differs in literals only
_WORDS = 24  # of a question, at most
_CHARACTERS = 400  # of a statement, at most


@dataclass(frozen=True)
class Recombined:
    """A new pair; `parents` are the ids of the labels that it was made from."""

    statement: Statement
    question: str
    parents: tuple[str, ...]


@dataclass(frozen=True)
class _Pair:
    """A pair with what can be changed in it."""

    db_id: str
    question: str
    tree: exp.Query  # canonical
    sql: str
    parents: tuple[str, ...]
    openings: tuple[tuple[str, ColumnName], ...]  # a value that may give way, and the domain of its column
    asked: tuple[str, ColumnName] | None  # what it asks for as a phrase, and the domain of the column
    columns: tuple[tuple[ColumnName, tuple[ColumnName, ...]], ...]  # a column said by name, and what may replace it


def recombine(
    labels: Sequence[Example], schemas: Mapping[str, Schema], seed: int, exclude: Collection[str] = ()
) -> Iterator[Recombined]:
    """New pairs until nothing new is found; `exclude` is canonical SQL. The same for the same seed.

    Nothing is executed here. Labels that are of another form than the changes need take no part.
    """
    rng = random.Random(f"recombine {seed}")
    nouns = {name: schema_stems(schema) for name, schema in schemas.items()}
    labelled = [example for example in labels if example.db_id in schemas]
    pairs = [pair for example in labelled if (pair := _label(example, schemas[example.db_id], nouns)) is not None]
    grown: list[_Pair] = []
    seen = {*exclude, *(pair.sql for pair in pairs)}
    structures = Counter(_structure(pair.tree) for pair in pairs)
    fruitless = 0

    def drawn() -> list[_Pair]:
        return grown if grown and rng.random() < _DEEPER else pairs

    while pairs and fruitless < _FRUITLESS:
        fruitless += 1
        first = rng.choice(drawn())
        schema = schemas[first.db_id]
        what = rng.random()
        if what < _EXTREME:
            changed = _other_extreme(first, schema)
        elif what < _EXTREME + _COLUMN:
            changed = _other_column(first, schema, rng)
        else:
            changed = _nested(first, drawn(), nouns[first.db_id], rng)
        if changed is None:
            continue
        question, tree, parents = changed
        pair = _pair(first.db_id, " ".join(question.split()), write(tree), parents, schema, nouns[first.db_id])
        if pair is None or pair.sql in seen:
            continue
        seen.add(pair.sql)
        structure = _structure(pair.tree)
        structures[structure] += 1
        long = len(pair.sql) > _CHARACTERS or len(pair.question.split()) > _WORDS
        if long or structures[structure] > _PER_STRUCTURE:
            continue
        try:
            text = in_dialect(pair.sql, schema)
        except ValueError:
            continue
        grown.append(pair)
        fruitless = 0
        identity = content_hash(pair.db_id, pair.sql)
        yield Recombined(Statement(identity, pair.db_id, text, structure, "", seed), pair.question, pair.parents)


def _label(label: Example, schema: Schema, nouns: Mapping[str, frozenset[str]]) -> _Pair | None:
    return _pair(label.db_id, label.question, label.sql, (label.id,), schema, nouns[label.db_id])


def _pair(
    db_id: str, question: str, sql: str, parents: tuple[str, ...], schema: Schema, nouns: frozenset[str]
) -> _Pair | None:
    """None where the SQL cannot be read."""
    try:
        resolved = canonicalize(sql, schema)
    except ValueError:
        return None
    phrase, domain = asked_phrase(question, nouns), _asked_domain(resolved, schema)
    return _Pair(
        db_id,
        question,
        resolved.tree,
        write(resolved.tree),
        tuple(dict.fromkeys(parents)),
        tuple(_openings(resolved, question, schema)),
        (phrase, domain) if phrase is not None and domain is not None else None,
        tuple(_columns(resolved, question, schema)),
    )


def _structure(tree: exp.Query) -> str:
    """The id of a statement's structure: all but its literals."""
    masked = tree.copy()
    for literal in list(masked.find_all(exp.Literal)):
        literal.replace(exp.Placeholder())
    return content_hash(write(masked))


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


def _openings(resolved: Resolved, question: str, schema: Schema) -> Iterator[tuple[str, ColumnName]]:
    """Texts that the question says once and that the SQL only says columns of one domain are, or are not."""
    graph, names = key_graph(schema), _names(resolved)
    found: dict[str, set[ColumnName | None]] = {}
    for literal in resolved.tree.find_all(exp.Literal):
        if not literal.is_string:
            continue
        parent = literal.parent
        name = names.get(id(parent.this)) if isinstance(parent, exp.EQ | exp.NEQ) else None
        found.setdefault(str(literal.this), set()).add(graph.domain(name) if name is not None else None)
    for value, domains in found.items():
        (domain, *more) = domains
        if domain is not None and not more and value and said_once(question, value) is not None:
            yield value, domain


def _columns(resolved: Resolved, question: str, schema: Schema) -> Iterator[tuple[ColumnName, tuple[ColumnName, ...]]]:
    """Columns that are said by name and compared with no value, each with those of its table, kind and role.

    One that the question says as part of a longer name ("population density"), or that belongs together with another of
    the statement (the highest point is where the highest elevation is), stays.
    """
    graph, names = key_graph(schema), _names(resolved)
    used = set(names.values())
    bound = {
        names.get(id(side))
        for literal in resolved.tree.find_all(exp.Literal)
        if literal.parent is not None
        for side in literal.parent.args.values()
        if isinstance(side, exp.Column)
    }
    for name in sorted(used - bound):
        table, place = schema.table(name[0]), name_said_once(question, name[1])
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
    outer: _Pair, others: Sequence[_Pair], nouns: Collection[str], rng: random.Random
) -> tuple[str, exp.Query, tuple[str, ...]] | None:
    """A value of `outer` replaced by what one of the others asks for."""
    if not outer.openings:
        return None
    value, domain = rng.choice(outer.openings)
    fitting = [
        (pair, pair.asked[0])
        for pair in others
        if pair.asked is not None and pair.asked[1] == domain and pair.db_id == outer.db_id and pair is not outer
    ]
    place = said_once(outer.question, value)
    if not fitting or place is None:
        return None
    inner, phrase = rng.choice(fitting)
    tree = outer.tree.copy()
    for literal in list(tree.find_all(exp.Literal)):
        comparison = literal.parent
        if literal.is_string and literal.this == value and isinstance(comparison, exp.EQ | exp.NEQ):
            inside = exp.In(this=comparison.this, query=exp.Subquery(this=inner.tree.copy()))
            comparison.replace(exp.Not(this=inside) if isinstance(comparison, exp.NEQ) else inside)
    return put_phrase(outer.question, place, phrase, nouns), tree, (*outer.parents, *inner.parents)


def _other_column(pair: _Pair, schema: Schema, rng: random.Random) -> tuple[str, exp.Query, tuple[str, ...]] | None:
    """A column of `pair`, and its name in the question, replaced by another."""
    if not pair.columns:
        return None
    old, others = rng.choice(pair.columns)
    new, place = rng.choice(others), name_said_once(pair.question, old[1])
    assert place is not None  # `_columns` found it
    resolved = canonicalize(pair.sql, schema)
    names = _names(resolved)
    for node in list(resolved.tree.find_all(exp.Column)):
        if names.get(id(node)) == old:
            node.set("this", exp.to_identifier(new[1]))
    question = pair.question[: place[0]] + " ".join(words_of(new[1])) + pair.question[place[1] :]
    return question, resolved.tree, pair.parents


def _other_extreme(pair: _Pair, schema: Schema) -> tuple[str, exp.Query, tuple[str, ...]] | None:
    """The one extreme of `pair` turned round: MIN for MAX, or the other end of an order."""
    apart = {word for _, name in _names(canonicalize(pair.sql, schema)).values() for word in stems_of(name)}
    question = opposite_extreme(pair.question, apart)
    if question is None:
        return None
    tree = pair.tree.copy()
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
    return question, tree, pair.parents

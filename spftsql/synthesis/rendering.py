"""Templates back into SQL: a template is parsed once into pieces of text, and filling it is joining strings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from sqlglot import exp

from spftsql.synthesis.canonical import Numbers, parse, quoted, write
from spftsql.synthesis.joins import KeyGraph
from spftsql.synthesis.scopes import selects
from spftsql.synthesis.templates import Bindings, Tables, Value

_PIECE = re.compile(r"z(\d+)z")
_SLOT = re.compile(r"(?:col_\w+|value)_\d+")
_TABLE = re.compile(r"t\d+")
_QUALIFIER = re.compile(r"s(\d+)(?:_(\d+))?")


@dataclass(frozen=True)
class From:
    """The FROM clause of the SELECT number `scope` (from 0)."""

    scope: int


@dataclass(frozen=True)
class Mention:
    """A column (slot `slot`, or `*`) of a table of SELECT `scope`, mentioned in SELECT `within`.

    `place` is the place of its table in the FROM clause where the column alone does not tell; `label` is set for a
    column of a derived table; `bare` ones are never qualified.
    """

    slot: str
    scope: int
    within: int
    place: int | None = None
    label: str | None = None
    bare: bool = False


@dataclass(frozen=True)
class Hole:
    """A value, with what surrounds it in a LIKE pattern."""

    slot: str
    before: str = ""
    after: str = ""
    pattern: bool = False


@dataclass(frozen=True)
class Place:
    """A table in the FROM clause of SELECT `scope` that also has derived tables."""

    scope: int
    place: int


Piece = str | From | Mention | Hole | Place


@dataclass(frozen=True)
class Compiled:
    """A template ready to fill. `parents` gives the SELECT around each SELECT (-1 for none).

    `derived` marks the SELECTs over derived tables; `places` says whether tables are told apart by place (self-joins).
    `aliases` are the names of derived tables, `outputs` those of result columns.
    """

    pieces: tuple[Piece, ...]
    parents: tuple[int, ...]
    derived: tuple[bool, ...]
    links: tuple[tuple[str, str], ...]
    scope_slots: tuple[tuple[str, ...], ...]
    places: bool
    aliases: frozenset[str]
    outputs: frozenset[str]

    @property
    def mentions(self) -> list[Mention]:
        """The pieces that are columns."""
        return [piece for piece in self.pieces if isinstance(piece, Mention)]


@lru_cache(maxsize=20_000)
def compile_template(sql: str) -> Compiled:
    """Parses the text of a template. Raises `ValueError` when it is not one."""
    tree = parse(sql)
    found = list(selects(tree))
    numbers = {id(select): number for number, select in enumerate(found)}
    parents = tuple(_enclosing(select, numbers) for select in found)
    derived = tuple(select.args.get("from_") is not None for select in found)
    links = tuple(_links(tree))
    aliases = frozenset(node.name.lower() for node in tree.find_all(exp.TableAlias))
    outputs = frozenset(node.alias.lower() for node in tree.find_all(exp.Alias))
    special: list[Piece] = []

    def mark(piece: Piece) -> exp.Identifier:
        special.append(piece)
        return exp.to_identifier(f"z{len(special) - 1}z")

    for node in list(tree.find_all(exp.Column)):
        piece = _mention(node, numbers)
        if piece is not None:
            node.replace(exp.Column(this=mark(piece)))
    for literal in list(tree.find_all(exp.Literal)):
        match = re.search(r"value_\d+", literal.name) if literal.is_string else None
        if match:
            hole = Hole(match.group(), literal.name[: match.start()], literal.name[match.end() :], pattern=True)
            literal.replace(exp.Column(this=mark(hole)))
    for number, select in enumerate(found):
        if not derived[number]:
            select.set("from_", exp.From(this=exp.Table(this=mark(From(number)))))
            continue
        for item in [select.args["from_"], *(select.args.get("joins") or [])]:
            if isinstance(item.this, exp.Table) and _TABLE.fullmatch(item.this.name):
                place = Place(number, int(item.this.name[1:]) - 1)
                item.this.replace(exp.Table(this=mark(place)))

    pieces: list[Piece] = []
    for part, text in enumerate(_PIECE.split(write(tree))):
        if part % 2 == 0:
            pieces.append(text)
            continue
        filler = special[int(text)]
        if isinstance(filler, From):
            pieces[-1] = str(pieces[-1]).removesuffix(" FROM ")
        pieces.append(filler)
    mentions = [piece for piece in special if isinstance(piece, Mention)]
    scope_slots = tuple(
        tuple(dict.fromkeys(m.slot for m in mentions if m.scope == number and m.label is None and not m.bare))
        for number in range(len(found))
    )
    places = any(mention.place is not None for mention in mentions)
    return Compiled(tuple(p for p in pieces if p != ""), parents, derived, links, scope_slots, places, aliases, outputs)


def render(compiled: Compiled, bindings: Bindings, graph: KeyGraph) -> str | None:
    """The SQL of a template with these bindings; None where its tables cannot be joined or do not fit its columns."""
    scopes = bindings.scopes
    labels = _labels(compiled, bindings)
    if labels is None or _collides(compiled, bindings, graph):
        return None
    out: list[str] = []
    for piece in compiled.pieces:
        if isinstance(piece, str):
            out.append(piece)
        elif isinstance(piece, Hole):
            value = bindings.values[piece.slot]
            out.append(literal(f"{piece.before}{value}{piece.after}" if piece.pattern else value))
        elif isinstance(piece, Place):
            out.append(_source(scopes[piece.scope].tables[piece.place], labels[piece.scope][piece.place]))
        elif isinstance(piece, From):
            text = _from(scopes[piece.scope], labels[piece.scope], graph)
            if text is None:
                return None
            out.append(text)
        else:
            name = "*" if piece.slot == "*" else quoted(bindings.columns[piece.slot][1])
            label = piece.label or ""
            free = piece.label is None and not piece.bare
            several = free and (len(labels[piece.scope]) > 1 or compiled.derived[piece.scope])
            if free and (piece.within != piece.scope or several):
                label = labels[piece.scope][_place(piece, bindings)]
            out.append(f"{label}.{name}" if label else name)
    return "".join(out)


def literal(value: Value) -> str:
    """A value as it stands in SQL."""
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)


def _from(tables: Tables, labels: list[str], graph: KeyGraph) -> str | None:
    names = tables.tables
    if not names:
        return ""
    joins = tables.joins
    if joins is None:
        joins = graph.joins(names)
        if joins is None:
            return None
    text = f" FROM {_source(names[0], labels[0])}"
    for place, join in enumerate(joins, 1):
        source = _source(names[place], labels[place])
        if not join.equalities:
            text += f" {join.side} JOIN {source}" if join.side else f", {source}"
            continue
        on = " AND ".join(
            f"{labels[left]}.{quoted(column)} = {labels[place]}.{quoted(own)}" for left, column, own in join.equalities
        )
        text += f" {join.side} JOIN {source} ON {on}" if join.side else f" JOIN {source} ON {on}"
    return text


def _source(table: str, label: str) -> str:
    name = quoted(table)
    return name if name == label else f"{name} AS {label}"


def _place(mention: Mention, bindings: Bindings) -> int:
    if mention.place is not None:
        return mention.place
    return bindings.scopes[mention.scope].tables.index(bindings.columns[mention.slot][0])


def _collides(compiled: Compiled, bindings: Bindings, graph: KeyGraph) -> bool:
    """Whether a table, or a column of one, has a name that the template gives to something else."""
    if not compiled.aliases and not compiled.outputs:
        return False
    names = {name for scope in bindings.scopes for name in scope.tables}
    if any(name.lower() in compiled.aliases for name in names):
        return True
    tables = filter(None, map(graph.schema.table, names)) if compiled.outputs else ()
    return any(table.column(output) is not None for table in tables for output in compiled.outputs)


def _labels(compiled: Compiled, bindings: Bindings) -> list[list[str]] | None:
    """The name of every table in its SELECT, by the rules of canonical SQL; None where a column has no table."""
    scopes = bindings.scopes
    hidden: set[tuple[int, int]] = set()
    for mention in compiled.mentions:
        if mention.label is not None or mention.bare:
            continue
        tables = scopes[mention.scope].tables
        if mention.slot != "*" and bindings.columns[mention.slot][0] not in tables:
            return None
        at = mention.within
        while at != mention.scope:
            place = _place(mention, bindings)
            if tables[place] in scopes[at].tables:
                hidden.add((mention.scope, place))
            at = compiled.parents[at]
    numbers = Numbers((*compiled.aliases, *(table for scope in scopes for table in scope.tables)))
    labels = []
    for number, scope in enumerate(scopes):
        row = []
        for place, table in enumerate(scope.tables):
            if scope.tables.count(table) > 1 or (number, place) in hidden:
                row.append(quoted(numbers.next(table)))
            else:
                row.append(quoted(table))
        labels.append(row)
    return labels


def _enclosing(node: exp.Expr, numbers: Mapping[int, int]) -> int:
    outer = node.find_ancestor(exp.Select)
    return numbers[id(outer)] if outer is not None else -1


def _mention(node: exp.Column, numbers: Mapping[int, int]) -> Mention | Hole | None:
    star = isinstance(node.this, exp.Star)
    if not star and not _SLOT.fullmatch(node.name):
        return None
    if node.name.startswith("value_"):
        return Hole(node.name)
    name = "*" if star else node.name
    outer = node.find_ancestor(exp.Select, exp.SetOperation)
    if not isinstance(outer, exp.Select):
        return Mention(name, -1, -1, bare=True)
    within = numbers[id(outer)]
    match = _QUALIFIER.fullmatch(node.table)
    if match:
        place = int(match.group(2)) - 1 if match.group(2) else None
        return Mention(name, int(match.group(1)) - 1, within, place)
    if node.table or outer.args.get("from_") is not None:
        return Mention(name, within, within, label=node.table)
    return Mention(name, within, within)


def _links(tree: exp.Expr) -> list[tuple[str, str]]:
    """Pairs of column slots that are compared with each other or stand in the same place of a set operation."""
    found = []
    for node in tree.find_all(exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.In, exp.SetOperation):
        if isinstance(node, exp.In):
            pairs = [(node.this, node.args.get("query"))]
        elif isinstance(node, exp.SetOperation):
            left, right = _outputs(node.this), _outputs(node.expression)
            pairs = list(zip(left, right, strict=False))
        else:
            pairs = [(node.this, node.expression)]
        for one, other in pairs:
            ends = _slot(one), _slot(other)
            if ends[0] and ends[1] and ends[0] != ends[1]:
                found.append((ends[0], ends[1]))
    return found


def _outputs(query: exp.Expr) -> list[exp.Expr]:
    while isinstance(query, exp.SetOperation):
        query = query.this
    return list(query.expressions)


def _slot(node: exp.Expr | None) -> str:
    """The column slot whose values an expression has, if any."""
    while isinstance(node, exp.Subquery | exp.Paren | exp.Max | exp.Min | exp.Alias | exp.SetOperation):
        node = node.this
    if isinstance(node, exp.Select):
        return _slot(node.expressions[0])
    return node.name if isinstance(node, exp.Column) and node.name.startswith("col_") else ""

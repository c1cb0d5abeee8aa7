"""What else is asked of the sandbox about a statement, and what speaks against it once it was executed.

A result alone does not show that another one would be as right (LIMIT over ties, a column beside an aggregate), or that
a condition cuts nothing (`HAVING COUNT(*) > 2` where every group has three rows). So what a statement's text leaves
open is asked of the data, by the probes of `spftsql.verdicts`. And of HAVING, EXISTS and IN (SELECT …) it is asked what
they cut: the statement is executed once more with the condition turned round.

All that fills one template is asked the same. Where it can be, that is written once, as templates.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from sqlglot import exp

from spftsql.records import Statement, Verdict, VerificationRequest
from spftsql.synthesis.canonical import conjuncts, parse, write
from spftsql.synthesis.joins import KeyGraph
from spftsql.synthesis.scopes import selects
from spftsql.synthesis.templates import Bindings
from spftsql.synthesis.uses import Select
from spftsql.verdicts import digest
from spftsql.verdicts.probes import probes
from spftsql.verdicts.reading import DIALECTS
from spftsql.verdicts.ties import width

_VALUE = re.compile(r"value_(\d+)")
_TABLE, _NUMBER, _MANY = "table_of_a_template", 7_770_000_000, 7_779_999_999  # stand for what a template leaves out
_BESIDE = "neither grouped nor aggregated"  # in the reason of a probe
_Texts = tuple[tuple[str, ...], ...]
_ENGINES = {dialect: engine for engine, dialect in DIALECTS.items()}


@dataclass(frozen=True, slots=True)
class Checks:
    """What is to be found out about a statement.

    `choices` are pairs of statements that give one result unless the statement may vary; `beside` are such pairs about
    columns beside an aggregate. Where its text leaves open more than such pairs tell, `open` says that it is to be
    judged against itself under `strict`. `conditions` has, for each condition that may cut nothing, the statement with
    the condition turned round, and, where an empty result of that does not yet prove it, the statement without the
    condition. `nothing` are the digests of results that count or add up no row at all.
    """

    open: bool = False
    choices: tuple[tuple[str, ...], ...] = ()
    beside: tuple[tuple[str, ...], ...] = ()
    conditions: tuple[tuple[str, ...], ...] = ()
    nothing: frozenset[str] = frozenset()


@lru_cache(maxsize=20_000)
def checks_of(sql: str, dialect: str = "sqlite") -> Checks:
    """The checks for a statement, or for all that fill a template: `choices` and `conditions` are then templates, too.

    Raises `ValueError` when it does not parse.
    """
    tree = parse(sql, dialect)
    found: dict[exp.Expr, bool] = {}
    for condition, alone in _conditions(tree):
        found[condition] = alone and condition not in found
    conditions = []
    for condition, alone in found.items():
        cut = _changed(tree, condition, dialect, turned=True)
        conditions.append((cut,) if alone else (cut, _changed(tree, condition, dialect, turned=False)))
    choices = _choices(tree, dialect)
    cuts, beside = choices or ((), ())
    return Checks(choices is None, cuts, beside, tuple(conditions), _nothing(tree))


def requests_of(statement: Statement, checks: Checks) -> list[VerificationRequest]:
    """What to execute: the statement first, under its own id, and what its checks ask for."""
    identity, db_id, sql = statement.id, statement.db_id, statement.sql
    asked = [VerificationRequest(identity, db_id, sql, None, "strict")]
    if checks.open:
        asked.append(VerificationRequest(_itself(identity), db_id, sql, sql, "strict"))
    for kind, all_texts in (("choice", checks.choices + checks.beside), ("condition", checks.conditions)):
        for number, texts in enumerate(all_texts):
            names = _names(identity, kind, number, texts)
            asked += [VerificationRequest(n, db_id, text, None, "strict") for n, text in zip(names, texts, strict=True)]
    return asked


def objection(statement: Statement, checks: Checks, verdicts: Mapping[str, Verdict]) -> str:
    """Why a statement is dropped, by the verdicts on all its requests; empty where nothing speaks against it."""
    identity = statement.id
    verdict = verdicts[identity]
    if verdict.fault:
        return "fault"
    if verdict.status != "ran":
        return verdict.status
    if _is_empty(verdict, checks):
        return "empty"
    if verdict.constant_null:
        return "constant-null"
    if any(verdicts[request.id].fault for request in requests_of(statement, checks)):
        return "fault"
    if checks.open and verdicts[_itself(identity)].status == "unverifiable":
        return "not-deterministic"
    for number, texts in enumerate(checks.choices + checks.beside):
        found = [verdicts[name] for name in _names(identity, "choice", number, texts)]
        if any(one.status != "ran" or one.digest != found[0].digest for one in found):
            return "not-deterministic"
    for number, texts in enumerate(checks.conditions):
        cut, *without = (verdicts[name] for name in _names(identity, "condition", number, texts))
        if cut.status == "ran" and _is_empty(cut, checks) and all(one.digest == verdict.digest for one in without):
            return "no-effect"
    return ""


def settled(checks: Checks, select: Select, bindings: Bindings, graph: KeyGraph) -> Checks:
    """The checks of a filled template without those that keys and counts answer; `select` is its first SELECT."""
    if len(checks.choices) == 1 and not checks.beside and _orders_by_unique(select, bindings, graph):
        checks = replace(checks, choices=())
    if checks.beside and _groups_by_key(select, bindings, graph):
        checks = replace(checks, beside=())
    return checks


def _groups_by_key(select: Select, bindings: Bindings, graph: KeyGraph) -> bool:
    """Whether every plain output of a SELECT is grouped by, or is of a table whose primary key is."""
    grouped: dict[tuple[str, str], set[str]] = {}
    for slot, qualifier in select.groups:
        table, column = bindings.columns.get(slot, ("", ""))
        grouped.setdefault((table, qualifier), set()).add(column)
    for slot, qualifier in set(select.outputs) - set(select.groups):
        table = bindings.columns.get(slot, ("", ""))[0]
        found = graph.schema.table(table)
        if (
            found is None
            or not found.primary_key
            or not set(found.primary_key) <= grouped.get((table, qualifier), set())
        ):
            return False
    return True


def _orders_by_unique(select: Select, bindings: Bindings, graph: KeyGraph) -> bool:
    """Whether a SELECT over one table is ordered by a column that has another value in every row."""
    if select.groups or len(bindings.scopes[0].tables) != 1:
        return False
    names = [bindings.columns[slot] for slot, _ in select.orders if slot in bindings.columns]
    columns = [(graph.column(name), graph.rows(name[0])) for name in names]
    return any(column is not None and column.distinct == rows for column, rows in columns)


def _itself(identity: str) -> str:
    return f"{identity}/itself"


def _names(identity: str, kind: str, number: int, texts: Sequence[str]) -> list[str]:
    return [f"{identity}/{kind}-{number}-{part}" for part in range(len(texts))]


def _is_empty(verdict: Verdict, checks: Checks) -> bool:
    return not verdict.row_count or (verdict.row_count == 1 and verdict.digest in checks.nothing)


def _conditions(tree: exp.Query) -> Iterator[tuple[exp.Expr, bool]]:
    """The conditions of HAVING, and those with EXISTS or IN (SELECT …).

    Beside each, whether the statement gives nothing with the condition turned round only if the condition cuts nothing.
    """
    for select in selects(tree):
        where, having = select.args.get("where"), select.args.get("having")
        whole = select is tree and not select.args.get("offset")
        for part in conjuncts(where.this) if where is not None else ():
            inner = part.this if isinstance(part, exp.Not) else part
            if isinstance(inner, exp.Exists) or (isinstance(inner, exp.In) and inner.args.get("query")):
                yield part, whole and having is None
        for part in conjuncts(having.this) if having is not None else ():
            yield part, whole


def _changed(tree: exp.Query, condition: exp.Expr, dialect: str, turned: bool) -> str:
    """The statement with a condition turned round, or else made true, wherever it stands.

    What the condition mentions stays in either case: a template's SELECTs are numbered.
    """
    changed = tree.copy()
    for one, _ in list(_conditions(changed)):
        if one == condition:
            inner = exp.paren(one.copy())
            fails = exp.Not(this=exp.Is(this=inner, expression=exp.true()))  # NULL fails, too
            one.replace(fails if turned else exp.paren(exp.or_(inner, exp.true())))
    return write(changed, dialect)


def _choices(tree: exp.Query, dialect: str) -> tuple[_Texts, _Texts] | None:
    """The probes of a statement, or of all that fill a template, those of columns beside an aggregate apart.

    None where they are no such templates.
    """
    whole = tree.copy()
    for select in whole.find_all(exp.Select):
        if select.args.get("from_") is None:  # a template, whose values look like columns
            select.set("from_", exp.From(this=exp.to_table(_TABLE)))
    for column in list(whole.find_all(exp.Column)):
        if match := _VALUE.fullmatch(column.name):
            column.replace(exp.Literal.number(_NUMBER + int(match.group(1))))
    outputs = width(whole)
    asked = [p for p in probes(write(whole, dialect), outputs or 1, _MANY, _ENGINES[dialect]) if p.cut]
    cuts: list[tuple[str, ...]] = []
    beside: list[tuple[str, ...]] = []
    for probe in asked:
        pair = [_as_template(text, dialect) for text in probe.pairs[0]] if probe.pairs else []
        if outputs is None or len(probe.pairs) != 1 or any(_count(one) != _count(tree) for one in pair):
            return None
        (beside if _BESIDE in probe.reason else cuts).append(tuple(write(one, dialect) for one in pair))
    return tuple(cuts), tuple(beside)


def _count(tree: exp.Query) -> int:
    return len(list(selects(tree)))


def _as_template(sql: str, dialect: str) -> exp.Query:
    """The tree of a probe, without what stood in for tables and values."""
    tree = parse(sql, dialect)
    for select in tree.find_all(exp.Select):
        source = select.args.get("from_")
        if source is not None and source.this.name == _TABLE:
            select.set("from_", None)
    for literal in list(tree.find_all(exp.Literal)):
        if literal.is_int and _NUMBER <= int(literal.name) < _MANY:
            literal.replace(exp.column(f"value_{int(literal.name) - _NUMBER}"))
    return tree


def _nothing(tree: exp.Query) -> frozenset[str]:
    """The digests of one row that says that there was none: counts and sums of 0, and NULL for the others."""
    if not isinstance(tree, exp.Select) or tree.args.get("group") is not None:
        return frozenset()
    calls = [item.unalias() for item in tree.expressions]
    names = [call.name.upper() if isinstance(call, exp.Anonymous) else call.key.upper() for call in calls]
    if not names or not set(names) <= {"COUNT", "TOTAL", "SUM", "AVG", "MIN", "MAX"}:
        return frozenset()
    no_rows = tuple(0 if name in ("COUNT", "TOTAL") else None for name in names)
    zeros = tuple(0 if name in ("COUNT", "TOTAL", "SUM") else None for name in names)
    return frozenset(digest([row]) for row in (no_rows, zeros))

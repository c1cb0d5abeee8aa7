"""What else is asked of the sandbox about a statement, and what speaks against it once it was executed.

A result alone does not show that another one would be as right (LIMIT over ties, a column beside an aggregate), or that
a condition cuts nothing (`HAVING COUNT(*) > 2` where every group has three rows). So what a statement's text leaves
open is asked of the data, by the probes of `spftsql.verdicts`. And of HAVING, EXISTS and IN (SELECT …) it is asked what
they cut: the statement is executed once more with the condition turned round.

All that fills one template is asked the same. Where it can be, that is written once, as templates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from sqlglot import exp

from spftsql.databases.values import Values
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
_BESIDE, _ADDED = "neither grouped nor aggregated", "an aggregate over rows"  # in the reasons of probes
_Texts = tuple[tuple[str, ...], ...]
_ENGINES = {dialect: engine for engine, dialect in DIALECTS.items()}


@dataclass(frozen=True, slots=True)
class Checks:
    """What is to be found out about a statement.

    `choices` are pairs of statements that give one result unless the statement may vary; `beside` are such pairs about
    columns beside an aggregate, and `sums` about sums of the columns in the slots `added`, whose last digits depend on
    the order of their rows. Where its text leaves open more than such pairs tell, `open` says that it is to be judged
    against itself under `strict`. `conditions` has, for each condition that may cut nothing, the statement with
    the condition turned round, and, where an empty result of that does not yet prove it, the statement without the
    condition. `nothing` are the digests of results that count or add up no row at all.
    """

    open: bool = False
    choices: tuple[tuple[str, ...], ...] = ()
    beside: tuple[tuple[str, ...], ...] = ()
    sums: tuple[tuple[str, ...], ...] = ()
    added: frozenset[str] = frozenset()
    conditions: tuple[tuple[str, ...], ...] = ()
    nothing: frozenset[str] = frozenset()

    @property
    def pairs(self) -> tuple[tuple[str, ...], ...]:
        """All pairs of statements that give one result unless the statement may vary."""
        return self.choices + self.beside + self.sums


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
    checks = _choices(tree, dialect) or Checks(open=True)
    return replace(checks, conditions=tuple(conditions), nothing=_nothing(tree))


def executed(
    statements: Iterable[tuple[Statement, Checks]],
    execute: Callable[[Sequence[VerificationRequest]], Iterable[Verdict]],
    at_once: bool,
) -> dict[str, Verdict]:
    """The verdicts of statements, each under its own id, and of their checks.

    `execute` is called `at_once` for all of them; else for the statements, and then for the next checks of those that
    nothing speaks against yet: on large data a check takes longer than its statement, and most that is slow is dropped.
    """
    asked, verdicts = list(statements), dict[str, Verdict]()
    calls = [_STEPS] if at_once else [(step,) for step in _STEPS]
    for number, steps in enumerate(calls):
        asked = [(one, checks) for one, checks in asked if not _objection(one, checks, verdicts, number)]
        requests = [r for one, checks in asked for requests_of, _ in steps for r in requests_of(one, checks)]
        if requests:
            verdicts |= {verdict.id: verdict for verdict in execute(requests)}
    return verdicts


def objection(statement: Statement, checks: Checks, verdicts: Mapping[str, Verdict]) -> str:
    """Why a statement is dropped, by what `executed` gave; empty where nothing speaks against it."""
    return _objection(statement, checks, verdicts, len(_STEPS))


def _objection(statement: Statement, checks: Checks, verdicts: Mapping[str, Verdict], steps: int) -> str:
    """What the first so many steps say against it."""
    for requests_of, speaks in _STEPS[:steps]:
        if any(verdicts[request.id].fault for request in requests_of(statement, checks)):
            return "fault"
        if reason := speaks(statement.id, checks, verdicts):
            return reason
    return ""


def _itself(statement: Statement, checks: Checks) -> list[VerificationRequest]:
    return [VerificationRequest(statement.id, statement.db_id, statement.sql, None, "strict")]


def _against_itself(identity: str, checks: Checks, verdicts: Mapping[str, Verdict]) -> str:
    verdict = verdicts[identity]
    if verdict.status != "ran":
        return verdict.status
    if _is_empty(verdict, checks):
        return "empty"
    return "constant-null" if verdict.constant_null else ""


def _choices_of(statement: Statement, checks: Checks) -> list[VerificationRequest]:
    return _texts(statement, "choice", checks.choices + checks.beside)


def _against_choices(identity: str, checks: Checks, verdicts: Mapping[str, Verdict]) -> str:
    return _differs(identity, "choice", checks.choices + checks.beside, verdicts)


def _others_of(statement: Statement, checks: Checks) -> list[VerificationRequest]:
    identity, db_id, sql = statement.id, statement.db_id, statement.sql
    asked = [VerificationRequest(f"{identity}/itself", db_id, sql, sql, "strict")] if checks.open else []
    return [*asked, *_texts(statement, "sum", checks.sums), *_texts(statement, "condition", checks.conditions)]


def _against_others(identity: str, checks: Checks, verdicts: Mapping[str, Verdict]) -> str:
    if checks.open and verdicts[f"{identity}/itself"].status == "unverifiable":
        return "not-deterministic"
    if reason := _differs(identity, "sum", checks.sums, verdicts):
        return reason
    for number, texts in enumerate(checks.conditions):
        cut, *without = (verdicts[name] for name in _names(identity, "condition", number, texts))
        same = all(one.digest == verdicts[identity].digest for one in without)
        if cut.status == "ran" and _is_empty(cut, checks) and same:
            return "no-effect"
    return ""


_Requests = Callable[[Statement, Checks], list[VerificationRequest]]
_Speaks = Callable[[str, Checks, Mapping[str, Verdict]], str]  # why the statement of this id is dropped
_STEPS: tuple[tuple[_Requests, _Speaks], ...] = (
    (_itself, _against_itself),
    (_choices_of, _against_choices),
    (_others_of, _against_others),
)


def _texts(statement: Statement, kind: str, all_texts: _Texts) -> list[VerificationRequest]:
    return [
        VerificationRequest(name, statement.db_id, text, None, "strict")
        for number, texts in enumerate(all_texts)
        for name, text in zip(_names(statement.id, kind, number, texts), texts, strict=True)
    ]


def _differs(identity: str, kind: str, pairs: _Texts, verdicts: Mapping[str, Verdict]) -> str:
    for number, texts in enumerate(pairs):
        found = [verdicts[name] for name in _names(identity, kind, number, texts)]
        if any(one.status != "ran" or one.digest != found[0].digest for one in found):
            return "not-deterministic"
    return ""


def settled(checks: Checks, select: Select, bindings: Bindings, graph: KeyGraph, values: Values) -> Checks:
    """The checks of a filled template without those that keys and values answer; `select` is its first SELECT."""
    if len(checks.pairs) == len(checks.choices) == 1 and _orders_by_unique(select, bindings, graph):
        checks = replace(checks, choices=())
    if checks.sums and all(s in bindings.columns and values.adds_up(*bindings.columns[s]) for s in checks.added):
        checks = replace(checks, sums=())
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


def _choices(tree: exp.Query, dialect: str) -> Checks | None:
    """The pairs of statements that tell whether a statement, or what fills a template, may vary.

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
    choices: list[tuple[str, ...]] = []
    beside: list[tuple[str, ...]] = []
    sums: list[tuple[str, ...]] = []
    added: set[str] = set()
    for probe in asked:
        pair = [_as_template(text, dialect) for text in probe.pairs[0]] if probe.pairs else []
        if outputs is None or len(probe.pairs) != 1 or any(_count(one) != _count(tree) for one in pair):
            return None
        columns = _added(pair[0]) if _ADDED in probe.reason else frozenset[str]()
        added |= columns
        kind = beside if _BESIDE in probe.reason else sums if columns else choices
        kind.append(tuple(write(one, dialect) for one in pair))
    return Checks(False, tuple(choices), tuple(beside), tuple(sums), frozenset(added))


def _added(tree: exp.Query) -> frozenset[str]:
    """The columns whose rows a probe adds up in an order; none where it brings anything else into one."""
    columns = set()
    for order in tree.find_all(exp.Order):
        call = order.parent
        if isinstance(call, exp.Query):
            continue  # of its rows
        if not isinstance(call, exp.Sum | exp.Avg) or not isinstance(order.this, exp.Column):
            return frozenset()
        columns.add(order.this.name)
    return frozenset(columns)


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

"""Random and mutated statements against the sandbox, for any engine: `run(engine, count, seed)`.

About half of the statements come from a grammar over the database's own tables; the others are made by damaging or
disguising such a statement, a gold query or a hostile one. What is promised of them: nothing outside the database is
read, nothing at all is changed, not even for the statements that follow, every statement gets an answer that is not a
fault, and none outlives twice its hard limit.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Self

from spftsql.config import SandboxConfig
from spftsql.errors import Fault
from spftsql.sandbox.execute import Sandbox
from spftsql.sandbox.result import Execution
from tests.hostile import CANARY, timed

LIMITS = SandboxConfig(soft_seconds=0.2, hard_seconds=1.0, max_rows=500, max_bytes=1_000_000, memory_mb=256)

_TOKENS = re.compile(
    r"""'(?:[^']|'')*'?|"[^"]*"?|--[^\n]*|/\*.*?\*/|[A-Za-z_]\w*|\d[\w.]*|<=|>=|<>|!=|\|\||::|\S""", re.DOTALL
)
_KEYWORDS = """
    SELECT FROM WHERE GROUP BY ORDER HAVING LIMIT OFFSET UNION ALL INTERSECT EXCEPT JOIN LEFT RIGHT FULL NATURAL CROSS
    ON USING AS DISTINCT NOT NULL IS IN EXISTS BETWEEN LIKE AND OR CASE WHEN THEN ELSE END CAST WITH RECURSIVE VALUES
    OVER PARTITION ROWS FILTER COLLATE ESCAPE INSERT INTO UPDATE SET DELETE DROP TABLE CREATE VIEW INDEX ALTER ATTACH
    DETACH PRAGMA EXPLAIN BEGIN COMMIT ROLLBACK SAVEPOINT VACUUM ANALYZE RETURNING COPY LOAD INSTALL CALL GRANT TEMP
"""
_SIGNS = """( ) , ; . * = < > <= <> + - / % || | & ~ -- /* */ ' " ? :x @ $1 0 1 -1 1e308 9223372036854775807"""
_WORDS = [*_KEYWORDS.split(), *_SIGNS.split()]
# Kinds of values: n for numbers, t for texts. A wrong one is an error for some engines, so it is taken only at times.
_LITERALS = {
    "n": ("0", "1", "-1", "2", "0.5", "1e3", "1e308", "9223372036854775807", "-9223372036854775808", "NULL"),
    "t": ("''", "'a'", "'name 1'", "'%'", "'2024-02-29'", "'€'", "'it''s'", "'1'", "NULL"),
}
_WRONG_KINDS = 0.03
_MOST_TOKENS = 2000


@dataclass(frozen=True)
class Engine:
    """What the fuzzer has to know about an engine and one database of it.

    `tables` maps a table's name to its columns and these to their kind, `n` for numbers and `t` for texts; `functions`
    are scalar functions: name, kinds of the arguments, kind of the result, such as `("substr", "tnn", "t")`. `state`
    returns something that changes when anything does that the statements could have written to.
    """

    name: str
    database: str | Path
    tables: dict[str, dict[str, str]]
    functions: Sequence[tuple[str, str, str]]
    state: Callable[[], object]
    syntax_error: re.Pattern[str]
    golds: Sequence[str] = ()
    hostile: Sequence[str] = ()
    config: SandboxConfig = LIMITS


@dataclass
class Report:
    """What came of the statements: how many of each kind, and everything that broke the promise."""

    statements: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    parsed: int = 0
    slowest: float = 0.0
    broken: list[str] = field(default_factory=list)

    def count(self, answer: Execution, parsed: bool) -> None:
        self.statements += 1
        self.parsed += parsed
        self.kinds["refused" if answer.reason.startswith("refused") else answer.status] += 1

    @property
    def executed(self) -> int:
        return self.kinds["ran"] + self.kinds["truncated"] + self.kinds["timeout"]

    def __iadd__(self, other: Report) -> Self:
        self.statements += other.statements
        self.kinds += other.kinds
        self.parsed += other.parsed
        self.slowest = max(self.slowest, other.slowest)
        self.broken += other.broken
        return self

    def __str__(self) -> str:
        return (
            f"{self.statements} statements, {self.parsed / self.statements:.1%} parsed, "
            f"{self.executed / self.statements:.1%} executed, slowest {self.slowest:.2f} s, {dict(self.kinds)}"
        )


def run(engine: Engine, count: int, seed: int) -> Report:
    """Executes `count` statements one after another."""
    report = Report()
    table, columns = next(iter(engine.tables.items()))
    probe = f"SELECT count(*), max({quoted(next(iter(columns)))}) FROM {quoted(table)}"
    with Sandbox(engine.config) as sandbox:

        def state() -> object:
            (answer,) = sandbox.execute(engine.database, [probe])
            return answer.rows, answer.reason, engine.state()

        before = state()
        for number, sql in enumerate(statements(engine, count, seed)):
            wrong = []
            answer, seconds = timed(sandbox, engine.database, sql, 2 * engine.config.hard_seconds)
            report.slowest = max(report.slowest, seconds)
            if seconds > 2 * engine.config.hard_seconds:
                wrong.append(f"took {seconds:.2f} s")
            if isinstance(answer, Fault):
                wrong.append(f"fault: {answer}")
            else:
                report.count(answer, parsed=not engine.syntax_error.search(answer.reason))
                if any(CANARY in str(row) for row in answer.rows):
                    wrong.append("the secret was read")
            if number % 25 == 24 or number == count - 1:
                after = state()
                if after != before:
                    wrong.append("this or one of the 24 before changed something")
                before = after
            if wrong:
                report.broken.append(f"statement {number} of seed {seed}: {', '.join(wrong)}: {sql[:500]!r}")
    return report


def statements(engine: Engine, count: int, seed: int) -> Iterator[str]:
    """The same statements for the same seed."""
    random = Random(seed)
    grammar = Grammar(engine, random)
    for _ in range(count):
        choice = random.random()
        if choice < 0.45:
            yield grammar.statement()
            continue
        if choice < 0.55 or not (engine.golds or engine.hostile):
            sql = grammar.statement()
        elif choice < 0.75 and engine.golds:
            sql = random.choice(engine.golds)
        else:
            sql = random.choice(engine.hostile or engine.golds)
        yield random.choice((mutated, mutated, disguised))(sql, random)


def mutated(sql: str, random: Random) -> str:
    """`sql` with one to four of its tokens lost, doubled, swapped, replaced or joined by others."""
    tokens = _TOKENS.findall(sql)[:_MOST_TOKENS]
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        at = random.randrange(len(tokens) + 1) if tokens else 0
        other = random.randrange(len(tokens)) if tokens else 0
        change = random.randrange(7)
        if change == 0:
            del tokens[at : at + random.choice((1, 1, 2, 5))]
        elif change == 1:
            tokens[at:at] = tokens[at : at + random.choice((1, 2, 8))]
        elif change == 2 and at < len(tokens):
            tokens[at], tokens[other] = tokens[other], tokens[at]
        elif change == 3:
            tokens[at : at + 1] = [random.choice(_WORDS)]
        elif change == 4:
            tokens.insert(at, random.choice(_WORDS))
        elif change == 5:
            tokens[at : at + 1] = [random.choice(_LITERALS[random.choice("nt")])]
        else:
            tokens.insert(at, chr(random.choice((random.randrange(32, 127), random.randrange(1, 0xD800)))))
    return " ".join(tokens)


def disguised(sql: str, random: Random) -> str:
    """`sql` as it might get past a reader of texts: other case, comments, signs of the end, other numbers."""
    tokens = _TOKENS.findall(sql)[:_MOST_TOKENS]
    for at, token in enumerate(tokens):
        if token[0].isdigit() and random.random() < 0.3:
            tokens[at] = random.choice(_LITERALS["n"])
        elif token[0].isalpha():
            tokens[at] = random.choice((token, token.upper(), token.lower(), token.swapcase()))
    blanks = (" ", " ", " ", "\n", "\t", "/**/", " /* ; */ ", " -- ;\n")
    text = "".join(part for token in tokens for part in (token, random.choice(blanks)))
    return (
        random.choice(("", "", "", " ", ";", "/* SELECT 1 */ ", "-- \n"))
        + text
        + random.choice(("", ";", " ; --", "/*"))
    )


class Grammar:
    """Queries over the tables of an engine, of which most are right."""

    def __init__(self, engine: Engine, random: Random) -> None:
        self._tables, self._functions, self._random = engine.tables, engine.functions, random

    def statement(self) -> str:
        """One query."""
        choice = self._random.random()
        if choice < 0.1:
            return f"WITH c AS ({self._query(1)}) SELECT * FROM c{self._maybe(0.2, ', c AS d')}{self._limit()}"
        if choice < 0.2:
            glue = self._random.choice(("UNION", "UNION ALL", "INTERSECT", "EXCEPT"))
            kinds = self._random.choice(("n", "t", "nt"))
            one, other = self._select("a", 1, kinds), self._select("b", 1, kinds)
            return f"{one} {glue} {other}{self._maybe(0.3, ' ORDER BY 1')}{self._limit()}"
        return self._query(0)

    def _query(self, depth: int) -> str:
        names = self._random.choice(("a", "a", "a", "ab", "ab", "abc"))
        if self._random.random() < 0.25:
            return self._grouped(names, depth) + self._limit()
        kinds = self._random.choice(("n", "t", "nt", "tn", "ntn"))
        order = self._maybe(0.3, f" ORDER BY 1{self._maybe(0.5, ' DESC')}")
        return self._select(names, depth, kinds) + order + self._limit()

    def _select(self, names: str, depth: int, kinds: str) -> str:
        scope = self._scope(names)
        items = (f"{self._value(scope, depth, kind)} AS x{place}" for place, kind in enumerate(kinds))
        distinct = self._maybe(0.15, "DISTINCT ")
        return f"SELECT {distinct}{', '.join(items)} FROM {self._source(scope)}{self._where(scope, depth)}"

    def _grouped(self, names: str, depth: int) -> str:
        scope = self._scope(names)
        key, number, other = self._column(scope), self._column(scope, "n"), self._column(scope)
        aggregate = self._random.choice(
            ("count(*)", f"sum({number})", f"avg({number})", f"min({other})", f"count(DISTINCT {other})")
        )
        having = self._maybe(0.3, " HAVING count(*) > 1")
        where = self._where(scope, depth)
        return f"SELECT {key} AS x0, {aggregate} AS x1 FROM {self._source(scope)}{where} GROUP BY {key}{having}"

    def _scope(self, names: str) -> dict[str, str]:
        return {name: self._random.choice(list(self._tables)) for name in names}

    def _source(self, scope: dict[str, str]) -> str:
        source, seen = "", dict[str, str]()
        for name, table in scope.items():
            if not seen:
                source = f"{quoted(table)} AS {name}"
            elif self._random.random() < 0.1:
                source += f" CROSS JOIN {quoted(table)} AS {name}"
            else:
                kind = self._random.choice("nt")
                here, there = self._column({name: table}, kind), self._column(seen, kind)
                join = self._random.choice(("JOIN", "LEFT JOIN"))
                source += f" {join} {quoted(table)} AS {name} ON {here} = {there}"
            seen[name] = table
        return source

    def _where(self, scope: dict[str, str], depth: int) -> str:
        return self._maybe(0.6, " WHERE " + self._condition(scope, depth))

    def _condition(self, scope: dict[str, str], depth: int) -> str:
        random = self._random
        kind = random.choice("nt")
        column = self._column(scope, kind)
        choice = random.randrange(9)
        if choice == 0:
            return f"{column} IS {self._maybe(0.5, 'NOT ')}NULL"
        if choice == 1:
            return f"{column} IN ({', '.join(self._literal(kind) for _ in range(3))})"
        if choice == 2:
            pattern = random.choice(("%a%", "name%", "_", ""))
            return f"{self._column(scope, 't')} LIKE '{pattern}'"
        if choice in (3, 4) and depth < 2:
            inner = self._scope("s")
            source = f"FROM {quoted(inner['s'])} AS s"
            if choice == 3:
                return f"{column} IN (SELECT {self._column(inner, kind)} {source})"
            return f"EXISTS (SELECT 1 {source} WHERE {self._column(inner, kind)} = {column})"
        if choice == 5 and depth < 2:
            glue = random.choice(("AND", "OR"))
            return f"({self._condition(scope, depth + 1)} {glue} {self._condition(scope, depth + 1)})"
        if choice == 6 and depth < 2:
            return f"NOT ({self._condition(scope, depth + 1)})"
        compare = random.choice(("=", "<", ">", "<=", ">=", "<>"))
        return f"{self._value(scope, depth + 1, kind)} {compare} {self._value(scope, depth + 1, kind)}"

    def _value(self, scope: dict[str, str], depth: int, kind: str) -> str:
        random = self._random
        choice = random.randrange(10)
        if choice < 4 or depth > 2:
            return self._column(scope, kind)
        if choice == 4:
            return self._literal(kind)
        if choice == 5:
            name, arguments, _ = random.choice([function for function in self._functions if function[2] == kind])
            return f"{name}({', '.join(self._value(scope, depth + 1, argument) for argument in arguments)})"
        if choice == 6:
            operator = random.choice("+-*") if kind == "n" else "||"
            return f"({self._value(scope, depth + 1, kind)} {operator} {self._value(scope, depth + 1, kind)})"
        if choice == 7:
            return f"CASE WHEN {self._condition(scope, depth + 1)} THEN {self._column(scope, kind)} END"
        if choice == 8 and depth == 0 and kind == "n":
            return f"row_number() OVER (PARTITION BY {self._column(scope)} ORDER BY {self._column(scope)})"
        inner = self._scope("s")
        return f"(SELECT max({self._column(inner, kind)}) FROM {quoted(inner['s'])} AS s)"

    def _column(self, scope: dict[str, str], kind: str | None = None) -> str:
        """A column of that kind; of another where the tables have none, and sometimes without need."""
        name = self._random.choice(list(scope))
        columns = self._tables[scope[name]]
        fitting = [column for column, its in columns.items() if its == kind]
        if not fitting or self._random.random() < _WRONG_KINDS:
            fitting = list(columns)
        return f"{name}.{quoted(self._random.choice(fitting))}"

    def _literal(self, kind: str) -> str:
        return self._random.choice(_LITERALS[kind])

    def _limit(self) -> str:
        return self._maybe(0.3, f" LIMIT {self._random.choice((0, 1, 5, 100))}")

    def _maybe(self, share: float, text: str) -> str:
        return text if self._random.random() < share else ""


def quoted(name: str) -> str:
    """`name` as an identifier."""
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else '"' + name.replace('"', '""') + '"'

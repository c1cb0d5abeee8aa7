"""Perturbed instances of a database: the same schema and habits, other rows.

A row starts as a row of the source. Blocks of its columns are exchanged with those of other rows, some columns get
values at and beside the literals of golds, keys are made fresh where they must be, and references point at rows that
exist. How much of each is a `Style`; every instance has another.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from spftsql.suites.golds import Condition, GoldFacts
from spftsql.suites.source import Cell, Link, Row, Source, SourceTable
from spftsql.suites.values import fresh, meeting, moved, stored

_TRIES = 12  # attempts to find a row that breaks no key
Spread = Literal["even", "skewed", "stairs"]


@dataclass(frozen=True)
class Style:
    """How an instance differs from its source.

    `rows`: at most so many in a table. `growth`: rows relative to the source's. `exchange`: share of blocks of columns
    taken from other rows. `witness`: share of rows made to meet, or just miss, conditions of golds. `repeat`: share of
    rows that repeat another one but for its keys. `orphans`: share of parents without children. `spread`: how children
    are spread over parents (`stairs`: no two parents have equally many). `numbers`: kept as they are, without ties as
    far as possible, or from few values. `nulls`: how much more NULLs than in the source, where it has any. `new_keys`:
    whether whole numbers as keys are other ones than in the source.
    """

    rows: int
    growth: float
    exchange: float
    witness: float
    repeat: float
    orphans: float
    spread: Spread
    numbers: Literal["kept", "distinct", "few"]
    nulls: float
    new_keys: bool


def style(index: int, rng: random.Random) -> Style:
    """The style of the candidate with that number: small ones without ties first, then everything by chance."""
    rows = (10, 25, 60, 25, 120, 40)[index % 6]
    return Style(
        rows=rows,
        growth=rng.choice((0.7, 1.0, 1.0, 1.6)),
        exchange=(0.0, 0.5, 1.0, 0.3)[index % 4],
        witness=(0.5, 0.3, 0.6, 0.15, 0.4)[index % 5],
        repeat=rng.choice((0.0, 0.0, 0.1)),
        orphans=rng.choice((0.0, 0.2, 0.5)),
        spread=("stairs", "skewed", "even")[index % 3],
        numbers=("distinct", "distinct", "kept", "few")[(index // 2) % 4],
        nulls=rng.choice((1.0, 1.0, 2.0, 0.0)),
        new_keys=rng.random() < 0.5,
    )


def make_rows(source: Source, facts: Sequence[GoldFacts], how: Style, rng: random.Random) -> dict[str, list[Row]]:
    """The rows of every table (by name) of one instance. Deterministic by `rng`'s state."""
    maker = _Maker(source, facts, how, rng)
    for table in source.tables:
        maker.fill(table)
    maker.close_circles()
    return {name: [tuple(row) for row in rows] for name, rows in maker.rows.items()}


class _Maker:
    def __init__(self, source: Source, facts: Sequence[GoldFacts], how: Style, rng: random.Random) -> None:
        self.source, self.how, self.rng = source, how, rng
        self.rows: dict[str, list[list[Cell]]] = {}
        self.witnesses: dict[str, list[int]] = {}
        self.open: list[tuple[SourceTable, Link]] = []
        self.asked = _asked(source, facts)
        self.shared = _shared(source, facts)
        self.few: dict[tuple[str, int], list[Cell]] = {}
        self.coined: dict[tuple[str, int, Cell], dict[int, Cell]] = {}

    def fill(self, table: SourceTable) -> None:
        """Makes the rows of a table whose parents have theirs."""
        rng, rows = self.rng, list[list[Cell]]()
        self.rows[table.name], self.witnesses[table.name] = rows, []
        taken: list[set[tuple[Cell, ...]]] = [set() for _ in table.keys]
        habits = [i for i, c in enumerate(table.columns) if c.unique and (i,) not in table.keys]
        used: dict[int, set[Cell]] = {i: set() for i in range(len(table.columns))}
        links = [link for link in table.links if link.parent in self.rows and link.parent != table.name]
        self.open += [(table, link) for link in table.links if link not in links]
        count = self._count(table)
        parents = {link: self._parents(table, link, count) for link in links}
        bases = rng.sample(range(len(table.rows)), len(table.rows)) if table.rows else []
        for number in range(count):
            for attempt in range(_TRIES):
                base = bases[number] if number < len(bases) else rng.randrange(len(table.rows))
                repeated = bool(rows) and rng.random() < self.how.repeat
                row = list(rng.choice(rows)) if repeated else list(table.rows[base])
                wanted: dict[int, Cell] = {}
                if not repeated:
                    self._exchange(table, row)
                    wanted = self._witness(table, row)
                    self._numbers(table, row, used)
                for link in links:
                    if not self._refer_as_wanted(table, link, row, wanted):
                        self._refer(table, link, row, parents[link], number, bool(wanted), attempt == 0)
                self._keys(table, row, taken, used, habits, links)
                self._nulls(table, row)
                keys = [tuple(row[i] for i in key) for key in table.keys]
                if all(key not in known for key, known in zip(keys, taken, strict=True)):
                    break
            else:
                continue
            for key, known in zip(keys, taken, strict=True):
                known.add(key)
            for index, cell in enumerate(row):
                used[index].add(cell)
            if wanted:
                self.witnesses[table.name].append(len(rows))
            rows.append(row)

    def close_circles(self) -> None:
        """Sets references to tables that were made later, or to the own one."""
        for table, link in self.open:
            parents = self.rows.get(link.parent, [])
            for row in self.rows[table.name]:
                if parents and any(row[i] is not None for i in link.columns):
                    parent = self.rng.choice(parents)
                    for own, other in zip(link.columns, link.parent_columns, strict=True):
                        row[own] = parent[other]

    def _count(self, table: SourceTable) -> int:
        if not table.rows:
            return 0
        total = table.total or len(table.rows)
        wanted = max(round(total * self.how.growth), min(8, 3 * total), 3)
        most = min(wanted, self.how.rows)
        return self.rng.randint(min(3, most), most) if self.rng.random() < 0.5 else most

    def _exchange(self, table: SourceTable, row: list[Cell]) -> None:
        for block in table.blocks:
            # What is unique is as good as any other: all of it is used once before any of it is used again.
            if not any(table.columns[index].unique for index in block) and self.rng.random() < self.how.exchange:
                other = self.rng.choice(table.rows)
                for index in block:
                    row[index] = other[index]
        for index, column in enumerate(table.columns):
            pool = self.shared.get((table.name, index))
            if pool and not column.unique and self.rng.random() < 0.3:
                row[index] = stored(column, self.rng.choice(pool))

    def _witness(self, table: SourceTable, row: list[Cell]) -> dict[int, Cell]:
        """Makes the row meet the conditions of a gold, or all of them but one; returns what it set."""
        asked = self.asked.get(table.name.lower())
        if not asked or self.rng.random() >= self.how.witness:
            return {}
        misses = self.rng.random() < 0.5
        conditions = self.rng.choice(asked)
        missed = self.rng.randrange(len(conditions)) if misses else -1
        wanted: dict[int, Cell] = {}
        for place, condition in enumerate(conditions):
            index = table.index(condition.column)
            if index is not None and (index not in wanted or self.rng.random() < 0.5):  # else `a = 1 OR a = 2`
                value = meeting(condition, table.columns[index], place != missed, self.rng)
                if value is not None:
                    wanted[index] = value
        for block in table.blocks:
            self._set(table, row, block, {index: wanted[index] for index in block if index in wanted})
        return wanted

    def _set(self, table: SourceTable, row: list[Cell], block: Sequence[int], wanted: Mapping[int, Cell]) -> None:
        """Sets columns of a block; its others come from a row of the source with these values, where there is one."""
        fitting = []
        if len(block) > 1 and wanted:
            fitting = [other for other in table.rows if all(other[i] == value for i, value in wanted.items())]
        if fitting:
            other = self.rng.choice(fitting)
            row[:] = [other[i] if i in block else cell for i, cell in enumerate(row)]
        elif any(table.columns[i].unique for i in block) or len(block) == 1:
            for index, value in wanted.items():
                row[index] = value
        elif wanted:
            index, value = next(iter(wanted.items()))
            for place, cell in self._coined(table, block, index, value).items():
                row[place] = cell

    def _coined(self, table: SourceTable, block: Sequence[int], index: int, value: Cell) -> dict[int, Cell]:
        """A block around a value that the source does not have; always the same one around the same value.

        The words in it are new too, so that what follows from them still does.
        """
        key = table.name, index, value
        if key not in self.coined:
            other = self.rng.choice(table.rows)
            words: dict[int, Cell] = {}
            for i in block:
                cell = other[i]
                words[i] = f"{cell}2" if isinstance(cell, str) and table.columns[i].kind == "text" else cell
            self.coined[key] = {**words, index: value}
        return self.coined[key]

    def _some(self, values: Sequence[Cell]) -> list[Cell]:
        return self.rng.sample(values, min(len(values), self.rng.randint(1, 3)))

    def _numbers(self, table: SourceTable, row: list[Cell], used: Mapping[int, set[Cell]]) -> None:
        if self.how.numbers == "kept":
            return
        alone = {block[0] for block in table.blocks if len(block) == 1}
        linked = {index for link in table.links for index in link.columns}
        keyed = {index for key in table.keys for index in key}
        for index, column in enumerate(table.columns):
            if column.kind not in ("integer", "real") or column.closed or index not in alone - linked - keyed:
                continue
            if self.how.numbers == "few":
                if column.values:
                    few = self.few.setdefault((table.name, index), self._some(column.values))
                    row[index] = self.rng.choice(few)
                continue
            for _ in range(_TRIES):
                if row[index] not in used[index] or row[index] is None:
                    break
                row[index] = moved(column, row[index], self.rng)

    def _parents(self, table: SourceTable, link: Link, count: int) -> list[int]:
        """For every child, the position of its parent."""
        total = len(self.rows[link.parent])
        order = self.rng.sample(range(total), total)
        if self.rng.random() < 0.5:
            marked = set(self.witnesses.get(link.parent, ()))
            order.sort(key=lambda index: index not in marked)
        order = order[: max(1, round(total * (1 - self.how.orphans)))]
        if link.columns in table.keys:
            return order[:count]
        if not order:
            return []
        # Either every parent has a child, or some have none.
        chosen = list(order) if self.how.orphans == 0 and count >= total else []
        left = count - len(chosen)
        if self.how.spread == "stairs":
            steps = [parent for size, parent in enumerate(order, 1) for _ in range(size)][:left]
            chosen += steps + self.rng.choices(order[-1:], k=left - len(steps))
        else:
            weights = [1.0 if self.how.spread == "even" else 1 / rank for rank in range(1, len(order) + 1)]
            chosen += self.rng.choices(order, weights, k=left)
        self.rng.shuffle(chosen)
        return chosen

    def _refer_as_wanted(self, table: SourceTable, link: Link, row: list[Cell], wanted: Mapping[int, Cell]) -> bool:
        """Keeps a reference that a condition asks for, if there is such a parent."""
        if link.columns[0] not in wanted or len(link.columns) > 1:
            return False
        (own,), (theirs,) = link.columns, link.parent_columns
        parents = [
            parent for parent in self.rows[link.parent] if stored(table.columns[own], parent[theirs]) == wanted[own]
        ]
        if not parents:
            return False
        for mine, there in ((own, theirs), *link.copies):
            row[mine] = stored(table.columns[mine], parents[0][there])
        return True

    def _refer(
        self,
        table: SourceTable,
        link: Link,
        row: list[Cell],
        parents: Sequence[int],
        number: int,
        witness: bool,
        first: bool,
    ) -> None:
        rows = self.rows[link.parent]
        if not rows or not parents or any(row[i] is None for i in link.columns):
            return
        block = next(block for block in table.blocks if link.columns[0] in block)
        if len(block) > 1 and len(link.columns) == 1:
            # Columns follow from this reference: it stays what it is, if its parent is there.
            known = {other[link.parent_columns[0]]: other for other in rows}
            fitting = [other for other in table.rows if other[link.columns[0]] in known]
            if row[link.columns[0]] not in known and fitting:
                other = self.rng.choice(fitting)
                for place in block:
                    row[place] = other[place]
            if row[link.columns[0]] in known:
                parent = known[row[link.columns[0]]]
                for mine, theirs in link.copies:
                    row[mine] = parent[theirs]
                return
        own = link.columns in table.keys
        if own and number >= len(parents):
            chosen = self.rng.randrange(len(rows))
        else:
            chosen = parents[number % len(parents)] if first else self.rng.choice(parents)
        marked = self.witnesses.get(link.parent)
        if witness and marked and not own and self.how.orphans and self.rng.random() < 0.5:
            chosen = self.rng.choice(marked)
        parent = rows[chosen]
        for mine, theirs in (*zip(link.columns, link.parent_columns, strict=True), *link.copies):
            row[mine] = stored(table.columns[mine], parent[theirs])

    def _keys(
        self,
        table: SourceTable,
        row: list[Cell],
        taken: Sequence[set[tuple[Cell, ...]]],
        used: Mapping[int, set[Cell]],
        habits: Sequence[int],
        links: Sequence[Link],
    ) -> None:
        linked = {index for link in links for index in link.columns}
        single = [key[0] for key in table.keys if len(key) == 1]
        loose = [index for index in [*single, *habits] if index not in linked]
        for index in single:
            column = table.columns[index]
            if self.how.new_keys and index in loose and column.kind == "integer" and not column.as_text:
                row[index] = self.rng.randint(1, max(99, int(column.high), 4 * self.how.rows))
        for block in table.blocks:
            unique = [index for index in block if index in loose]
            if any(row[index] in used[index] or row[index] is None for index in unique):
                self._rename(table, row, unique, used)
        for key, known in zip(table.keys, taken, strict=True):
            free = [index for index in key if index not in linked]
            if len(key) > 1 and free and tuple(row[i] for i in key) in known:
                index = free[-1]
                column = table.columns[index]
                others = [v for v in column.values if (*(row[i] if i != index else v for i in key),) not in known]
                row[index] = self.rng.choice(others) if others else fresh(column, used[index], self.rng)

    def _rename(
        self, table: SourceTable, row: list[Cell], unique: Sequence[int], used: Mapping[int, set[Cell]]
    ) -> None:
        """Gives a row unique values that are not in use: those of a row of the source, as long as there are any."""
        start = self.rng.randrange(len(table.rows))
        for place in range(len(table.rows)):
            other = table.rows[(start + place) % len(table.rows)]
            if all(other[index] is not None and other[index] not in used[index] for index in unique):
                for index in unique:
                    row[index] = other[index]
                return
        for index in unique:
            row[index] = fresh(table.columns[index], used[index], self.rng)

    def _nulls(self, table: SourceTable, row: list[Cell]) -> None:
        keyed = {index for key in table.keys for index in key}
        for index, column in enumerate(table.columns):
            if column.required or index in keyed:
                continue
            if row[index] is None and self.how.nulls == 0 and column.values:
                row[index] = self.rng.choice(column.values)
            elif column.nulls and self.rng.random() < 0.2 * (self.how.nulls - 1):
                row[index] = None
        for link in table.links:
            if any(row[index] is None for index in link.columns):  # then it refers to nothing, as a whole
                for index in set(link.columns) - keyed:
                    row[index] = None


def _asked(source: Source, facts: Sequence[GoldFacts]) -> dict[str, list[list[Condition]]]:
    """Groups of conditions that golds put on one item of a FROM clause, by the table (in lower case).

    What is asked of a reference is asked of what it refers to as well, so that there is such a row.
    """
    found: dict[str, list[list[Condition]]] = {}
    for fact in facts:
        groups: dict[tuple[str, int], list[Condition]] = {}
        for condition in fact.conditions:
            groups.setdefault((condition.table.lower(), condition.source), []).append(condition)
        for (name, _), conditions in groups.items():
            found.setdefault(name, []).append(conditions)
            table = source.table(name)
            for condition in conditions:
                index = table.index(condition.column) if table is not None else None
                for link in table.links if table is not None else ():
                    parent = source.table(link.parent)
                    if parent is not None and link.columns == (index,):
                        column = parent.columns[link.parent_columns[0]].name
                        moved_up = replace(condition, table=parent.name, column=column)
                        found.setdefault(parent.name.lower(), []).append([moved_up])
    return found


def _shared(source: Source, facts: Sequence[GoldFacts]) -> dict[tuple[str, int], list[Cell]]:
    """Values for columns that golds intersect or subtract: those of the other column, so that the two overlap."""
    found: dict[tuple[str, int], list[Cell]] = {}
    for one, other in dict.fromkeys(pair for fact in facts for pair in fact.pairs):
        ends = []
        for name, column in (one, other):
            table = source.table(name)
            index = table.index(column) if table is not None else None
            if table is not None and index is not None:
                ends.append((table, index))
        if len(ends) < 2:
            continue
        linked = [index in {i for link in table.links for i in link.columns} for table, index in ends]
        keyed = [any(index in key for key in table.keys) for table, index in ends]
        if any(linked) or any(keyed):
            continue
        for (table, index), (from_table, from_index) in (ends, ends[::-1]):
            found.setdefault((table.name, index), []).extend(from_table.columns[from_index].values[:20])
    return found

"""Where the result of a gold rests on what its author hardly thought of: equal sort keys at a cut, and NULLs.

`spftsql.verdicts.probes` finds what a statement leaves open. Here is what it settles, but in a way that other right
statements need not share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlglot import exp

from spftsql.synthesis.canonical import parse


@dataclass(frozen=True, slots=True)
class Cut:
    """A query that cuts its result after `rows` rows, without the cut and with its `keys` sort keys as last columns."""

    sql: str
    keys: int
    rows: int

    def is_tie(self, result: Sequence[Sequence[object]]) -> bool:
        """Whether the last row before the cut and the first one after it are alike to the sorting."""
        if not 0 < self.rows < len(result):
            return False
        last, next_ = result[self.rows - 1], result[self.rows]
        return last[len(last) - self.keys :] == next_[len(next_) - self.keys :]


def cuts(sql: str) -> list[Cut]:
    """The ORDER BY … LIMIT of a statement and of its subqueries; those over set operations are not among them.

    A tie there makes other right statements (`= (SELECT MAX(…))`) differ even where all tied rows look the same.
    """
    try:
        tree = parse(sql)
    except ValueError:
        return []
    found = []
    for query in tree.find_all(exp.Select):
        order, limit, offset = (query.args.get(key) for key in ("order", "limit", "offset"))
        counts = [clause.expression for clause in (limit, offset) if clause is not None]
        if order is None or limit is None or not all(isinstance(n, exp.Literal) and n.is_int for n in counts):
            continue
        copy = query.copy()
        outputs = {item.alias.lower(): item.unalias() for item in query.selects if item.alias}
        for key in order.expressions:
            value = key.this
            if isinstance(value, exp.Literal) and value.is_int and 0 < int(value.this) <= len(query.selects):
                value = query.selects[int(value.this) - 1].unalias()
            elif isinstance(value, exp.Column) and not value.table:
                value = outputs.get(value.name.lower(), value)
            copy.append("expressions", value.copy())
        copy.set("limit", None)
        copy.set("offset", None)
        found.append(Cut(copy.sql("sqlite"), len(order.expressions), sum(int(count.this) for count in counts)))
    return found


def nulls_elsewhere(sql: str) -> str | None:
    """The statement with NULLs sorted at the other end; None when it sorts nothing, or sqlglot does not parse it."""
    try:
        tree = parse(sql)
    except ValueError:
        return None
    keys = list(tree.find_all(exp.Ordered))
    for key in keys:
        key.set("nulls_first", not key.args.get("nulls_first"))
    return tree.sql("sqlite") if keys else None

"""What the text of a statement says about its result: whether its order counts, and whether it repeats.

Most texts are decided without reading them closely; sqlglot, which takes long to import, is asked about the others.
"""

from __future__ import annotations

import re
from functools import lru_cache

from spftsql.sandbox.location import Engine

DIALECTS: dict[Engine, str] = {"sqlite": "sqlite", "postgresql": "postgres", "duckdb": "duckdb"}  # sqlglot's names

# Cheap to look for, and found in every text in which something below is.
_MAY_VARY: dict[Engine, re.Pattern[str]] = {
    # A call, if perhaps with a quoted name or a comment in between; many columns are called date.
    "sqlite": re.compile(
        r"""current_(?:date|time)|(?:random|randomblob|date|time|julianday|unixepoch|timediff)["`\]]?\s*(?:\(|/\*|--)""",
        re.IGNORECASE,
    ),
    "postgresql": re.compile(
        r"random|seed|uuid|now|today|tomorrow|yesterday|current|local|time|age\b|val\b|txid_|pg_|inet_|sample",
        re.IGNORECASE,
    ),
    "duckdb": re.compile(
        r"random|seed|uuid|now|today|current|local|timestamp|age\b|val\b|txid|variable|sample", re.IGNORECASE
    ),
}


def engine_of(name: str) -> Engine:
    """The engine of an outcome, from its name and version (`sqlite 3.50.4`); SQLite when it has none of the names."""
    kind = name.partition(" ")[0]
    return next((engine for engine in DIALECTS if engine == kind), "sqlite")


@lru_cache(maxsize=10_000)
def ordered_at_top_level(sql: str, engine: Engine = "sqlite") -> bool:
    """Whether the statement as a whole has an ORDER BY: not in a subquery, a window or an aggregate."""
    if "order" not in sql.lower():
        return False
    from spftsql.verdicts.tokens import outer_order

    return outer_order(sql, DIALECTS[engine])


@lru_cache(maxsize=10_000)
def nondeterminism(sql: str, engine: Engine = "sqlite") -> str | None:
    """The first function, keyword or literal that makes the result depend on chance or the clock; None without one.

    What the data decides is not seen here: LIMIT over ties, arbitrary columns beside an aggregate (see `probes`).
    """
    if not _MAY_VARY[engine].search(sql):
        return None
    from spftsql.verdicts.tokens import first_that_varies

    return first_that_varies(sql, engine, DIALECTS[engine])

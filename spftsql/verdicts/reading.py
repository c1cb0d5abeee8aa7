"""What the text of a statement says about its result: whether its order counts, and whether it repeats.

Read off sqlglot's tokens and not its tree: tokens also exist for statements that its parser does not know, and
parentheses are all that these questions need.
"""

from __future__ import annotations

import re
from functools import lru_cache

from sqlglot import Token, TokenType, tokenize
from sqlglot.errors import SqlglotError

_OPEN, _CLOSE = TokenType.L_PAREN, TokenType.R_PAREN
_MAY_VARY = re.compile(r"random|now|current_|date|time|julianday|unixepoch", re.IGNORECASE)
_RANDOM = {"RANDOM", "RANDOMBLOB"}
_CLOCK = {"CURRENT_DATE", "CURRENT_TIME", "CURRENT_TIMESTAMP"}
# Date functions, with how many arguments they need before they stop asking the clock.
_DATES = {"DATE": 1, "TIME": 1, "DATETIME": 1, "JULIANDAY": 1, "UNIXEPOCH": 1, "STRFTIME": 2, "TIMEDIFF": 2}


@lru_cache(maxsize=10_000)
def ordered_at_top_level(sql: str) -> bool:
    """Whether the statement as a whole has an ORDER BY: not in a subquery, a window or an aggregate."""
    if "order" not in sql.lower():
        return False
    depth = 0
    for token in _tokens(sql):
        depth += (token.token_type == _OPEN) - (token.token_type == _CLOSE)
        if depth == 0 and token.token_type == TokenType.ORDER_BY:
            return True
    return False


@lru_cache(maxsize=10_000)
def nondeterminism(sql: str) -> str | None:
    """The first function or keyword that makes the result depend on chance or on the clock; None without one.

    What is not seen: LIMIT over ties, arbitrary columns beside an aggregate, sums of floats in another order. On one
    unchanged file SQLite repeats these, but another correct statement may give another result.
    """
    if not _MAY_VARY.search(sql):
        return None
    tokens = _tokens(sql)
    for index, token in enumerate(tokens):
        name = token.text.upper()
        if token.token_type in (TokenType.STRING, TokenType.IDENTIFIER):
            continue
        if name in _CLOCK:
            return name.lower()
        if index + 1 == len(tokens) or tokens[index + 1].token_type != _OPEN:
            continue
        if name in _RANDOM or (name in _DATES and _asks_clock(tokens, index + 1, _DATES[name])):
            return f"{name.lower()}()"
    return None


def _asks_clock(tokens: list[Token], opening: int, needed: int) -> bool:
    """Whether the call whose parenthesis opens there has 'now' as an argument, or too few arguments to do without."""
    depth, arguments = 0, 0
    for index in range(opening, len(tokens)):
        kind = tokens[index].token_type
        depth += (kind == _OPEN) - (kind == _CLOSE)
        if depth == 0:
            arguments += index > opening + 1
            break
        if depth == 1:
            arguments += kind == TokenType.COMMA
        if kind == TokenType.STRING and tokens[index].text.strip().lower() == "now":
            return True
    return arguments < needed


@lru_cache(maxsize=10_000)
def _tokens(sql: str) -> list[Token]:
    try:
        return tokenize(sql, read="sqlite")
    except SqlglotError:
        return []

"""What the tokens of a statement say about its order and its repeatability.

Tokens and not sqlglot's tree: they also exist for statements that its parser does not know, and parentheses are all
that these questions need.
"""

from __future__ import annotations

import re

from sqlglot import Token, TokenType, tokenize
from sqlglot.errors import SqlglotError

from spftsql.sandbox.location import Engine

_OPEN, _CLOSE = TokenType.L_PAREN, TokenType.R_PAREN
_TEXTS = (TokenType.STRING, TokenType.BYTE_STRING, TokenType.HEREDOC_STRING)

# Functions that give another value with every call, transaction, session or server, whatever their arguments.
_POSTGRESQL_CALLS = """
    RANDOM RANDOM_NORMAL SETSEED GEN_RANDOM_UUID GEN_RANDOM_BYTES UUID_GENERATE_V1 UUID_GENERATE_V1MC UUID_GENERATE_V4
    UUIDV4 UUIDV7 NOW CLOCK_TIMESTAMP STATEMENT_TIMESTAMP TRANSACTION_TIMESTAMP TIMEOFDAY NEXTVAL CURRVAL LASTVAL SETVAL
    CURRENT_QUERY MXID_AGE INET_CLIENT_ADDR INET_CLIENT_PORT INET_SERVER_ADDR INET_SERVER_PORT
"""
_DUCKDB_CALLS = """
    RANDOM SETSEED UUID GEN_RANDOM_UUID UUIDV4 UUIDV7 NOW TODAY GET_CURRENT_TIME GET_CURRENT_TIMESTAMP
    TRANSACTION_TIMESTAMP CURRENT_LOCALTIME CURRENT_LOCALTIMESTAMP TXID_CURRENT CURRENT_TRANSACTION_ID
    CURRENT_CONNECTION_ID CURRENT_QUERY CURRENT_QUERY_ID CURRENT_DATABASE CURRENT_SETTING GETVARIABLE NEXTVAL CURRVAL
    SETVAL
"""
# PostgreSQL's functions about the server and its transactions, but for those about names, types and encodings.
_ABOUT_SERVER = re.compile(
    "(?:PG|TXID)_(?!GET_|TYPEOF$|SIZE_PRETTY$|SIZE_BYTES$|COLUMN_SIZE$|COLLATION_FOR$|.*_IS_VISIBLE$|.*ENCODING)"
)
_CALLS: dict[Engine, frozenset[str]] = {
    "sqlite": frozenset(["RANDOM", "RANDOMBLOB"]),
    "postgresql": frozenset(_POSTGRESQL_CALLS.split()),
    "duckdb": frozenset(_DUCKDB_CALLS.split()),
}
_CLOCK = frozenset(["CURRENT_DATE", "CURRENT_TIME", "CURRENT_TIMESTAMP"])
_WORDS: dict[Engine, frozenset[str]] = {
    "sqlite": _CLOCK,
    "postgresql": _CLOCK | {"LOCALTIME", "LOCALTIMESTAMP", "TABLESAMPLE"},
    "duckdb": _CLOCK | {"LOCALTIME", "LOCALTIMESTAMP", "TABLESAMPLE"},
}
# Date functions, with how many arguments they need before they stop asking the clock.
_DATES: dict[Engine, dict[str, int]] = {
    "sqlite": {"DATE": 1, "TIME": 1, "DATETIME": 1, "JULIANDAY": 1, "UNIXEPOCH": 1, "STRFTIME": 2, "TIMEDIFF": 2},
    "postgresql": {"AGE": 2},
    "duckdb": {"AGE": 2},
}
# PostgreSQL takes these for the clock wherever a date is wanted, and only the columns' types say where that is.
_CLOCK_LITERALS = frozenset(["now", "today", "tomorrow", "yesterday"])


def outer_order(sql: str, dialect: str) -> bool:
    """Whether there is an ORDER BY outside all parentheses."""
    depth = 0
    for token in _tokens(sql, dialect):
        depth += (token.token_type == _OPEN) - (token.token_type == _CLOSE)
        if depth == 0 and token.token_type == TokenType.ORDER_BY:
            return True
    return False


def first_that_varies(sql: str, engine: Engine, dialect: str) -> str | None:
    """The first function, keyword or literal that makes the result depend on chance or the clock; None without one."""
    calls, words, dates = _CALLS[engine], _WORDS[engine], _DATES[engine]
    tokens = _tokens(sql, dialect)
    for index, token in enumerate(tokens):
        if token.token_type in _TEXTS:
            if engine == "postgresql" and token.text.strip().lower() in _CLOCK_LITERALS:
                return f"'{token.text.strip().lower()}'"
            continue
        name = token.text.upper()
        called = index + 1 < len(tokens) and tokens[index + 1].token_type == _OPEN
        if token.token_type == TokenType.IDENTIFIER and not called:
            continue  # a quoted name is no keyword, but it may be a function's
        if name in words and (index == 0 or tokens[index - 1].token_type != TokenType.DOT):
            return name.lower()
        if name == "USING" and index + 1 < len(tokens) and tokens[index + 1].text.upper() == "SAMPLE":
            return "using sample"
        if called and (name in calls or (name in dates and _asks_clock(tokens, index + 1, dates[name]))):
            return f"{name.lower()}()"
        if called and engine == "postgresql" and _ABOUT_SERVER.match(name):
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
        if kind in (TokenType.STRING, TokenType.IDENTIFIER):  # "now" in double quotes may be read as text, too
            text = tokens[index].text.strip().lower()
            if text == "now" or (text in ("subsec", "subsecond") and depth == 1 and arguments == needed - 1):
                return True
    return arguments < needed


def _tokens(sql: str, dialect: str) -> list[Token]:
    try:
        return tokenize(sql, read=dialect)
    except SqlglotError:
        return []

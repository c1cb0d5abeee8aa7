"""What the columns of a statement hold, in words, where their names alone do not say it."""

from __future__ import annotations

from sqlglot import exp, parse_one
from sqlglot.errors import SqlglotError

from spftsql.databases.schema import Schema
from spftsql.linking.words import lexicon, words_of

_LONGEST = 200  # characters of a description


def column_words(sql: str, schema: Schema) -> list[str]:
    """Lines such as `cust.cust_nm: customer name; full legal name` for the statement's columns and tables.

    A name that is words already, and has no comment, needs none; nothing is said of SQL that does not parse.
    """
    try:
        tree = parse_one(sql, dialect=schema.dialect)
    except SqlglotError:
        return []
    tables = [table for node in tree.find_all(exp.Table) if (table := schema.table(node.name)) is not None]
    lines: dict[str, None] = {}
    for table in tables:
        if words := _words(table.name, table.comment):
            lines[f"{table.name}: {words}"] = None
    for node in tree.find_all(exp.Column):
        for table in tables:
            column = table.column(node.name)
            if column is not None and (words := _words(column.name, column.comment)):
                lines[f"{table.name}.{column.name}: {words}"] = None
    return list(lines)


def _words(name: str, comment: str) -> str:
    """The name with its abbreviations written out, where that changes it, and the comment."""
    words = words_of(name)
    long = [lexicon().abbreviations.get(word, [word]) if word != "id" else [word] for word in words]
    spelled = " ".join(word for part in long for word in part)
    parts = [spelled] if spelled != " ".join(words) else []
    text = " ".join(comment.split())
    if text and text.casefold() not in (name.casefold(), " ".join(words)):
        parts.append(text if len(text) <= _LONGEST else text[: _LONGEST - 1].rstrip() + "…")
    return "; ".join(parts)

"""Values as placeholders, for models too small to copy a value that they have never seen.

`hide_values` replaces the values that a question and its SQL share by typed names (`state_name0`), so that a question
model learns wordings and not values; `show_values` puts values back. The replacement is by text in the question and by
parse tree in the SQL. Measured at toy scale in the same form (typed placeholders, slot-presence check).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sqlglot import exp, parse_one

from spftsql.linking.literals import comparison_with
from spftsql.linking.words import UNSPACED, WORD_END, WORD_START

_PLACEHOLDER = re.compile(rf"{WORD_START}[^\W\d{UNSPACED}][^\W{UNSPACED}]*\d{WORD_END}")  # a name that ends in a number


@dataclass(frozen=True)
class Hidden:
    """SQL with placeholders, and what each stands for, in the order of the SQL."""

    sql: str
    values: tuple[tuple[str, str], ...]  # (placeholder, value as a question would say it)


def hide_values(sql: str, dialect: str, question: str | None = None) -> Hidden:
    """`sql` with its predicates' values replaced; with a `question`, only those that the question mentions."""
    tree = parse_one(sql, dialect=dialect)
    names: dict[tuple[str, str], str] = {}
    counts: dict[str, int] = {}
    for literal in list(tree.find_all(exp.Literal)):
        comparison = comparison_with(literal)
        if comparison is None or isinstance(comparison, exp.Glob):
            continue
        value = literal.this.strip("%") if literal.is_string else literal.this
        if not value or (question is not None and not mentions(question, value)):
            continue
        of_case = comparison.find_ancestor(exp.Case) if isinstance(comparison, exp.If) else None
        column = (of_case or comparison).find(exp.Column)
        kind = column.name.lower() if column is not None else "value"
        if (kind, value) not in names:
            names[kind, value] = f"{kind}{counts.get(kind, 0)}"
            counts[kind] = counts.get(kind, 0) + 1
        name = names[kind, value]
        literal.replace(exp.Literal.string(literal.this.replace(value, name) if literal.is_string else name))
    return Hidden(tree.sql(dialect=dialect), tuple((name, value) for (_, value), name in names.items()))


def hide_in_question(question: str, hidden: Hidden) -> str:
    """The question with the same placeholders, longest value first."""
    for name, value in sorted(hidden.values, key=lambda pair: -len(pair[1])):
        question = _word(value).sub(name, question)
    return question


def show_values(question: str, hidden: Hidden) -> str | None:
    """The question with its values back in, or None when a placeholder is missing from it or left over in it."""
    if not {match[0].lower() for match in _PLACEHOLDER.finditer(question)} <= {name for name, _ in hidden.values}:
        return None
    for name, value in hidden.values:
        question, found = re.subn(rf"{WORD_START}{re.escape(name)}{WORD_END}", lambda _, v=value: v, question)  # type: ignore[misc]
        if not found:
            return None
    return question


def mentions(question: str, value: str) -> bool:
    """Whether a question says a value, as whole words, case ignored."""
    return _word(value).search(question) is not None


def _word(value: str) -> re.Pattern[str]:
    return re.compile(rf"{WORD_START}{re.escape(value)}{WORD_END}", re.IGNORECASE)

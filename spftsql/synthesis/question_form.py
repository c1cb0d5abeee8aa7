"""Whether what a model wrote is a question at all, in whatever language.

Small models without labels answer with SQL, with remarks about the task, or with a value; pairs of these teach nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rapidfuzz import fuzz

from spftsql.linking.words import has_unspaced, words_of

_KEYWORDS = re.compile(r"\b(?:SELECT|FROM|WHERE|JOIN|GROUP BY|ORDER BY|LIMIT|INTERSECT|UNION|EXCEPT)\b")
_ABOUT_THE_TASK = frozenset({"sql", "sqlite", "postgresql", "duckdb", "query"})
_REMARK = re.compile(r"(?:the|this)\s+(?:question|answer|statement)\b", re.IGNORECASE)
_ECHO = 90.0  # rapidfuzz.fuzz.ratio from which a text repeats the statement
_FEWEST_WORDS = 2  # beside the values


def is_question(text: str, sql: str, values: Sequence[str] = ()) -> bool:
    """Whether `text` may be a question that `sql` answers: whether it fits is not asked here.

    It is none when it is SQL, repeats the statement, speaks of the task ("the SQL query is"), announces something
    (a colon at the end), or has fewer than two words beside `values`. Orders ("list the singers") are questions.
    """
    if text.rstrip().endswith((":", ";")) or _REMARK.match(text.lstrip()):
        return False
    if len(_KEYWORDS.findall(text)) > 1 and text != text.upper():
        return False
    if fuzz.ratio(text.lower(), sql.lower()) >= _ECHO:
        return False
    if _ABOUT_THE_TASK.intersection(words_of(text.lower())) - {*words_of(sql.lower())}:
        return False
    rest = text
    for value in sorted(values, key=len, reverse=True):
        rest = rest.replace(value, " ")
    return len([word for word in rest.split() if any(c.isalpha() for c in word)]) >= _FEWEST_WORDS or (
        has_unspaced(rest)
    )

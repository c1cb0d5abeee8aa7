"""Values of a question as placeholders in it and in its SQL, for models too small to copy what they never saw.

"rivers in new york" is asked as "rivers in state_name0", answered with `state = 'state_name0'`, and the value is put
back. A placeholder is called after the domain of values (columns that keys join) in which its value is most frequent:
few names, each seen often. It depends on the question and the database alone, so that it is the same in training and in
use. Measured at toy scale with values known to the database (linked): worth more there than a round of VBI-FT.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from spftsql.databases.schema import Schema
from spftsql.linking.value_index import ValueIndex
from spftsql.linking.value_matching import ValueMatch, matching_values
from spftsql.linking.words import placed_words, stem, stems_of
from spftsql.synthesis.joins import ColumnName, key_graph

_SURE = 0.99  # score of a match that differs in case alone: "long" is not the mountain "longs"
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\w)")
_LITERAL = re.compile(r"'((?:[^']|'')*)'|" + _NUMBER.pattern)


@dataclass(frozen=True)
class HiddenValues:
    """A question with placeholders, and what each stands for; numbers apart, which SQL writes without quotes."""

    question: str
    texts: Mapping[str, str]
    numbers: Mapping[str, str]

    def hide(self, sql: str) -> str:
        """`sql` with the literals that the question says as placeholders, case ignored."""
        names = {value.casefold(): name for name, value in self.texts.items()}
        numbers = {value: name for name, value in self.numbers.items()}

        def hidden(literal: re.Match[str]) -> str:
            if literal[1] is None:
                return f"'{numbers[literal[0]]}'" if literal[0] in numbers else literal[0]
            text = literal[1].replace("''", "'")
            core = text.strip("%")
            name = names.get(core.casefold())
            return f"'{text.replace(core, name)}'" if core and name else literal[0]

        return _LITERAL.sub(hidden, sql)

    def show(self, sql: str) -> str:
        """`sql` with the values in the place of their placeholders; one that the question does not have stays."""

        def shown(literal: re.Match[str]) -> str:
            if literal[1] is None:
                return literal[0]
            text = literal[1].replace("''", "'").strip()
            core = text.strip("%").strip()
            if text in self.numbers:
                return self.numbers[text]
            if core in self.texts:
                return "'" + text.replace(core, self.texts[core]).replace("'", "''") + "'"
            return literal[0]

        return _LITERAL.sub(shown, sql)


def linked_values(question: str, schema: Schema, index: ValueIndex) -> HiddenValues:
    """The question with the values that `index` finds in it as placeholders."""
    matches = [one for match in matching_values(question, index) for one in _of_table(question, match, schema, index)]
    return hidden_values(question, matches, key_graph(schema).domain)


def _of_table(question: str, match: ValueMatch, schema: Schema, index: ValueIndex) -> Iterator[ValueMatch]:
    """The match; "ohio river" is the river "ohio" where some other column holds these words, and rivers are a table."""
    *said, noun = placed_words(question[match.start : match.end]) or [("", 0, 0)]
    if said and _sure(match):
        table = next((t for t in schema.tables if t.name != match.table and stems_of(t.name) == [stem(noun[0])]), None)
        end = match.start + said[-1][2]
        inside = [m for m in matching_values(question[match.start : end], index) if _sure(m)] if table else []
        whole = [replace(m, start=match.start, end=end) for m in inside if m.end - m.start == end - match.start]
        if table is not None and any(m.table == table.name for m in whole):
            yield from whole
            return
    yield match


def hidden_values(
    question: str, matches: Iterable[ValueMatch], domain: Callable[[ColumnName], ColumnName]
) -> HiddenValues:
    """The question with its whole matches, and its numbers, as placeholders named after domains of values."""
    by_span: dict[tuple[int, int], list[ValueMatch]] = {}
    for match in matches:
        if _sure(match):
            by_span.setdefault((match.start, match.end), []).append(match)
    for number in _NUMBER.finditer(question):
        by_span.setdefault(number.span(), [])
    pieces: list[str] = []
    texts: dict[str, str] = {}
    numbers: dict[str, str] = {}
    known: dict[tuple[str, str], str] = {}
    counts: dict[str, int] = {}
    at = 0
    for (start, end), found in sorted(by_span.items(), key=lambda item: (item[0][0], -item[0][1])):
        if start < at:
            continue  # inside or across a longer one
        best = max(found, key=lambda m: (m.score, m.count, m.column), default=None)
        value = best.value if best is not None else question[start:end]
        kind = _kind(found, domain)
        if (kind, value) not in known:
            name = known[kind, value] = f"{kind}{counts.get(kind, 0)}"
            counts[kind] = counts.get(kind, 0) + 1
            (texts if best is not None else numbers)[name] = value
        pieces += [question[at:start], known[kind, value]]
        at = end
    return HiddenValues("".join([*pieces, question[at:]]), texts, numbers)


def _sure(match: ValueMatch) -> bool:
    return match.how != "part" and match.score >= _SURE


def _kind(found: Iterable[ValueMatch], domain: Callable[[ColumnName], ColumnName]) -> str:
    """The name of the domain that holds the value in most rows."""
    rows: Counter[str] = Counter()
    for match in set(found):
        rows[re.sub(r"\W", "_", domain((match.table, match.column))[1].lower()).rstrip("0123456789")] += match.count
    return max(sorted(rows), key=lambda name: rows[name], default="") or "number"

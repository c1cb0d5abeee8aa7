"""Values of a question as placeholders in it and in its SQL, for models too small to copy what they never saw.

"rivers in new york" is asked as "rivers in state_name0", answered with `state = 'state_name0'`, and the value is put
back. What a placeholder is called depends on the question and the database alone, so that it is the same in training
and in use. Measured at toy scale with values known to the database (linked): worth more there than a round of VBI-FT.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from spftsql.linking.value_matching import ValueMatch

_SURE = 0.9  # score of a match in other case or form
_COLUMNS = 3  # that name one placeholder
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


def hidden_values(question: str, matches: Iterable[ValueMatch]) -> HiddenValues:
    """The question with its whole matches, and its numbers, as placeholders named after their columns."""
    by_span: dict[tuple[int, int], list[ValueMatch]] = {}
    for match in matches:
        if match.how != "part" and match.score >= _SURE:
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
        kind = _kind(found)
        if (kind, value) not in known:
            name = known[kind, value] = f"{kind}{counts.get(kind, 0)}"
            counts[kind] = counts.get(kind, 0) + 1
            (texts if best is not None else numbers)[name] = value
        pieces += [question[at:start], known[kind, value]]
        at = end
    return HiddenValues("".join([*pieces, question[at:]]), texts, numbers)


def _kind(found: Iterable[ValueMatch]) -> str:
    columns = sorted({re.sub(r"\W", "_", match.column.lower()).rstrip("0123456789") for match in found})
    return "_".join(columns[:_COLUMNS]) or "number"

"""SQL out of a model's answer while it is being written."""

from __future__ import annotations

import re
from collections.abc import Callable

_BARE = re.compile(r"\s*(?:SELECT|WITH|VALUES|\()", re.IGNORECASE)
_FENCE = "```"


class SqlText:
    """Takes text as it comes and gives the part of its SQL that is certain, bit by bit.

    `parse` finds the SQL in a whole answer (`PromptBuilder.parse_sql`); what is given adds up to what it finds in the
    end, except where an answer begins as SQL and turns out to be something else.
    """

    def __init__(self, parse: Callable[[str], str]) -> None:
        """Takes the parser."""
        self._parse, self._text, self._given = parse, "", ""

    def add(self, text: str) -> str:
        """The further SQL that is certain with `text`, often empty."""
        self._text += text
        begins = _BARE.match(self._text) or "\n" in self._text.partition(_FENCE)[2]
        # A last word may yet grow, and what follows it may decide how it is spaced.
        certain = self._text[: len(self._text) - len(re.split(r"\s", self._text)[-1])].rstrip()
        return self._new(self._parse(certain)) if begins and certain else ""

    def end(self) -> str:
        """The rest."""
        return self._new(self._parse(self._text))

    @property
    def sql(self) -> str:
        """The SQL of the text so far."""
        return self._parse(self._text)

    def _new(self, sql: str) -> str:
        if not sql.startswith(self._given):
            return ""
        new, self._given = sql[len(self._given) :], sql
        return new

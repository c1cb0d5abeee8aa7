"""SQL with a blank around every token, and back: the form that small tokenizers learn best."""

from __future__ import annotations

import re

import sqlglot
from sqlglot.errors import TokenError

_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`(?:[^`]|``)*`")
# Words before which a parenthesis does not open the arguments of a function.
_NO_CALL = (
    "SELECT|DISTINCT|FROM|JOIN|ON|WHERE|AND|OR|NOT|IN|AS|UNION|ALL|EXCEPT|INTERSECT|HAVING|BY|BETWEEN|LIKE|GLOB|IS|"
    "THEN|WHEN|ELSE|CASE|OVER|LIMIT|OFFSET|USING|FILTER|WITH"
)
_CALL = re.compile(rf"\b(?!(?:{_NO_CALL})\b)(\w+) \(", re.IGNORECASE)


def spaced(sql: str) -> str:
    """Writes every token of `sql` separated by one blank, and string literals as `' texas '`.

    Raises `ValueError` when the text cannot be split into tokens. Comments are dropped.
    """
    try:
        tokens = sqlglot.tokenize(sql, read="sqlite")
    except TokenError as error:
        raise ValueError(f"SQL cannot be split into tokens: {' '.join(str(error).split())}") from None
    words: list[str] = []
    for token in tokens:
        text = sql[token.start : token.end + 1]
        if text[0] in "'\"`" and text[-1] == text[0] and len(text) > 1:
            text = f"{text[0]} {text[1:-1]} {text[0]}"
        else:
            text = " ".join(text.split())
        if words and words[-1] == "." and text[0].isdigit() and sql[token.start - 1] == ".":
            words[-1] += text  # .5 is one number
        else:
            words.append(text)
    return " ".join(words)


def unspaced(text: str) -> str:
    """Turns the form that `spaced` writes back into plain SQL; any other text comes back in some form.

    Never raises; text with an unclosed quote is returned as it is.
    """
    parts: list[str] = []
    at = 0
    for match in _QUOTED.finditer(text):
        parts += [text[at : match.start()], match.group()]
        at = match.end()
    plain = [*parts[::2], text[at:]]
    if any(quote in part for part in plain for quote in "'\"`"):
        return text
    # Quoted parts are set aside under a mark that SQL cannot contain, so that blanks around them can be judged.
    joined = " ".join("\x00".join(part.replace("\x00", " ") for part in plain).split(" "))
    joined = re.sub(r"(?<=[\w\x00]) \. (?=[\w\x00*])", ".", joined)
    joined = re.sub(r"\( ", "(", joined)
    joined = re.sub(r" (?=[),])", "", joined)
    joined = _CALL.sub(r"\1(", joined)
    quoted = iter(parts[1::2])
    return re.sub("\x00", lambda _: _unpadded(next(quoted)), joined)


def _unpadded(literal: str) -> str:
    mark, content = literal[0], literal[1:-1]
    content = content.removeprefix(" ")
    return mark + content.removesuffix(" ") + mark

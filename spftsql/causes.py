"""The line of a Ray error that says what happened; around it are traces, and advice about Ray's own settings."""

from __future__ import annotations

import re

_NAMED = re.compile(r"^(?:[a-z_]\w*\.)*(?P<said>(?=[A-Z])\w*(?:Error|Exception|Fault|Exit|Died)\b.*)$")
_OF_RAY = ("ray.exceptions.", "ray::")
_LONGEST = 500


def cause_of(error: BaseException) -> str:
    """The last exception named in its text that is not one of Ray's own, else its last line, else its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in reversed(lines):
        if not line.startswith(_OF_RAY) and (found := _NAMED.match(line)):
            return found["said"][:_LONGEST]
    return lines[-1][:_LONGEST] if lines else type(error).__name__

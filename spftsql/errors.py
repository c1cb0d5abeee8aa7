"""The two kinds of failure that this project tells apart.

A `UserError` is something that the person at the keyboard can mend: it is printed as one line, without a
traceback, and ends the command with exit code 2. A `Fault` is about us or the machine (a worker died, a disk is
full, a replica is gone): it is retried where that makes sense, counted, and never becomes a verdict about SQL.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """A mistake that the user can mend; the message is one line and says what to do."""

    exit_code = 2


class Fault(Exception):
    """The infrastructure failed; says nothing about any SQL."""

    exit_code = 4


@contextmanager
def disk_faults(folder: Path) -> Iterator[None]:
    """Turns the errors of a disk that is full or fails, while something is written below `folder`, into a `Fault`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
            raise
        raise Fault(f"{folder} cannot be written ({error.strerror}): make room, then run again") from None

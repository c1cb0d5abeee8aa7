"""Where things are kept that can be made again: what is derived from the content of a database."""

from __future__ import annotations

import os
from pathlib import Path

from spftsql.errors import UserError


def cache_folder(name: str) -> Path:
    """The folder `name` in `$SPFTSQL_CACHE`, else in `~/.cache/spftsql`; made where it is missing.

    Raises `UserError` when it cannot be made.
    """
    root = os.environ.get("SPFTSQL_CACHE")
    folder = (Path(root) if root else Path.home() / ".cache" / "spftsql") / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        advice = "set SPFTSQL_CACHE to a directory that can be written"
        raise UserError(f"the cache directory {folder} cannot be made: {error.strerror}; {advice}") from None
    return folder

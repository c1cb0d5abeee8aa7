"""The names under which suites are kept."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

from spftsql.records import content_hash
from spftsql.sandbox.sqlite import ENGINE


def suite_key(db_id: str, database_hash: str, golds: Sequence[str], k: int, seed: int) -> str:
    """A name for the folder of a suite: the same for the same content, and for nothing else."""
    readable = re.sub(r"[^\w-]+", "-", db_id)[:40]
    parts = (db_id, database_hash, list(golds), k, seed, _code(), ENGINE, version("sqlglot"))
    return f"{readable}-{content_hash(*parts)}"


@cache
def _code() -> str:
    """A hash of the modules that decide what a suite holds: another version of them builds another suite."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted([*here.glob("*.py"), *(here.parent / "verdicts").glob("*.py")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()

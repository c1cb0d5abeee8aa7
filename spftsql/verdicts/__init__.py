"""Comparing the results of two statements under a named policy. Pure functions: no Ray, no torch, no database."""

from spftsql.verdicts.compare import compare
from spftsql.verdicts.digest import digest
from spftsql.verdicts.judge import verdict_of
from spftsql.verdicts.reading import nondeterminism, ordered_at_top_level
from spftsql.verdicts.stability import Stability, stability

__all__ = [
    "Stability",
    "compare",
    "digest",
    "nondeterminism",
    "ordered_at_top_level",
    "stability",
    "verdict_of",
]

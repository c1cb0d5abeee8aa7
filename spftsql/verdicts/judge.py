"""From two outcomes of execution to a verdict."""

from __future__ import annotations

from spftsql.records import Policy, Status
from spftsql.sandbox.result import Execution
from spftsql.verdicts.compare import compare
from spftsql.verdicts.reading import nondeterminism, ordered_at_top_level


def verdict_of(
    prediction: Execution, gold: Execution, gold_sql: str, policy: Policy, sql: str = ""
) -> tuple[Status, str]:
    """The verdict on `prediction` (the outcome of `sql`), given the outcome of `gold_sql`, and the reason for it.

    A gold that fails, is cut, or varies says nothing about the prediction: `unverifiable`, never `different`.
    """
    if gold.status != "ran":
        return "unverifiable", gold.reason if gold.reason == "encoding" else f"gold {gold.status}: {gold.reason}"
    if varies := nondeterminism(gold_sql):
        return "unverifiable", f"gold not deterministic: {varies}"
    if prediction.status != "ran":
        return prediction.status, prediction.reason
    if varies := nondeterminism(sql):
        return "unverifiable", f"not deterministic: {varies}"
    if policy == "strict" and len(prediction.columns) != len(gold.columns):
        return "different", f"{len(prediction.columns)} columns, gold {len(gold.columns)}"
    if compare(prediction.rows, gold.rows, policy, _order_counts(gold_sql, policy)):
        return "equal", ""
    if len(prediction.columns) != len(gold.columns):
        return "different", f"{len(prediction.columns)} columns, gold {len(gold.columns)}"
    if len(prediction.rows) != len(gold.rows):
        return "different", f"{len(prediction.rows)} rows, gold {len(gold.rows)}"
    return "different", "values"


def _order_counts(gold_sql: str, policy: Policy) -> bool:
    # `spider` looks for the words and for nothing else, wherever in the gold they stand: the original's rule.
    return "order by" in gold_sql.lower() if policy == "spider" else ordered_at_top_level(gold_sql)

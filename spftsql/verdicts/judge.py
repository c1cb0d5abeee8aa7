"""From two outcomes of execution to a verdict."""

from __future__ import annotations

from spftsql.records import Policy, Status
from spftsql.sandbox.location import Engine
from spftsql.sandbox.result import Execution
from spftsql.verdicts.compare import compare
from spftsql.verdicts.reading import engine_of, nondeterminism, ordered_at_top_level
from spftsql.verdicts.stability import Stability

_STABLE = Stability()


def verdict_of(
    prediction: Execution,
    gold: Execution,
    gold_sql: str,
    policy: Policy,
    sql: str = "",
    stability: Stability = _STABLE,
) -> tuple[Status, str]:
    """The verdict on `prediction` (the outcome of `sql`), given the outcome of `gold_sql`, and the reason for it.

    A gold that fails, is cut, or varies says nothing about the prediction: `unverifiable`, never `different`. Chance
    and the clock make it vary under every policy; `stability`, what the data decides (see `probes`), counts under
    `strict` alone, because the rules of `spider` and `bird` are published and know no such thing.
    """
    engine = engine_of(gold.engine)
    if gold.status != "ran":
        return "unverifiable", gold.reason if gold.reason == "encoding" else f"gold {gold.status}: {gold.reason}"
    if varies := nondeterminism(gold_sql, engine):
        return "unverifiable", f"gold not deterministic: {varies}"
    if policy == "strict" and stability.varies:
        return "unverifiable", f"gold not deterministic: {stability.varies}"
    if prediction.status != "ran":
        return prediction.status, prediction.reason
    if varies := nondeterminism(sql, engine):
        return "unverifiable", f"not deterministic: {varies}"
    if policy == "strict" and len(prediction.columns) != len(gold.columns):
        return "different", f"{len(prediction.columns)} columns, gold {len(gold.columns)}"
    ordered = _order_counts(gold_sql, policy, engine)
    if compare(prediction.rows, gold.rows, policy, ordered, stability.ties or ()):
        return "equal", ""
    order_unknown = policy == "strict" and ordered and stability.ties is None
    if order_unknown and compare(prediction.rows, gold.rows, policy, ordered=False):
        return "unverifiable", "gold not deterministic: the order of rows"
    if len(prediction.columns) != len(gold.columns):
        return "different", f"{len(prediction.columns)} columns, gold {len(gold.columns)}"
    if len(prediction.rows) != len(gold.rows):
        return "different", f"{len(prediction.rows)} rows, gold {len(gold.rows)}"
    return "different", "values"


def _order_counts(gold_sql: str, policy: Policy, engine: Engine) -> bool:
    if policy == "strict":
        return ordered_at_top_level(gold_sql, engine)
    # `spider` looks for the words and for nothing else, wherever in the gold they stand: the original's rule.
    return policy == "spider" and "order by" in gold_sql.lower()

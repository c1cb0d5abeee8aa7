"""Asks the database whether the gold statements are certain, so that no prediction is called different by chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set

from spftsql.errors import Fault
from spftsql.sandbox.location import Engine
from spftsql.sandbox.result import Execution
from spftsql.verdicts import Stability, nondeterminism, stability


def gold_stability(
    golds: Mapping[str, Execution],
    engine: Engine,
    execute: Callable[[Set[str]], Mapping[str, Execution | Fault]],
) -> dict[str, Stability | Fault]:
    """The stability of the golds (statement to result) that leave something open; the others are certain.

    `execute` runs the probes, all together and only if there are any. A gold of which a probe failed for our reasons
    has that fault.
    """
    if not golds:
        return {}
    from spftsql.verdicts.probes import probes  # it takes sqlglot along, which `spider` and `bird` do without

    asked = {
        sql: found
        for sql, result in golds.items()
        if result.status == "ran"
        and (found := probes(sql, len(result.columns), len(result.rows), engine))
        and nondeterminism(sql, engine) is None
    }
    statements = {sql: {s for probe in found for pair in probe.pairs for s in pair} for sql, found in asked.items()}
    wanted = set().union(*statements.values())
    results = execute(wanted) if wanted else {}
    answers: dict[str, Stability | Fault] = {}
    for sql, found in asked.items():
        outcomes = {s: results[s] for s in statements[sql]}
        faults = [outcome for outcome in outcomes.values() if isinstance(outcome, Fault)]
        ran = {s: outcome for s, outcome in outcomes.items() if not isinstance(outcome, Fault)}
        answers[sql] = faults[0] if faults else stability(golds[sql], found, ran)
    return answers

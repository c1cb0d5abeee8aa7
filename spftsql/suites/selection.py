"""Choosing instances: which of many candidates separate a gold statement from its mutants.

Every gold gets instances of its own, out of one pool per database. Instances that kill the mutants of one statement are
often of no use to another (its ties are cut, its result is empty), and a prediction is only ever compared with one
gold; so for the same number of executions per prediction, lists per gold kill more than one list per database.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spftsql.sandbox.execute import Sandbox
from spftsql.sandbox.result import Execution
from spftsql.suites.determinism import cuts, nulls_elsewhere
from spftsql.suites.mutations import Mutant
from spftsql.verdicts import compare, nondeterminism, stability
from spftsql.verdicts.probes import probes

_CHUNK = 64  # statements whose results are in memory together
_SLOW_MS = 1_000  # of a gold on the original
_DECAY = 0.25  # what killing a mutant once more is worth, compared with the time before


@dataclass(frozen=True)
class Target:
    """A gold and those of its mutants that run on the original database; `dead` (bits) are different there already.

    Where the gold is slow on the original its mutants are not tried there: all of them are kept, `known` is False.
    """

    gold: str
    mutants: tuple[Mutant, ...]
    dead: int
    known: bool = True


@dataclass(frozen=True)
class Outcome:
    """What one candidate does for one gold: whether the gold's result has rows, and the mutants it kills (bits)."""

    filled: bool
    killed: int


def on_original(sandbox: Sandbox, database: Path, gold: str, mutants: Sequence[Mutant]) -> Target | None:
    """Executes a gold and its mutants on the original; None when the gold fails there or varies.

    Mutants that fail, take too long or give too much there are left out: they are wrong in another way.
    """
    if nondeterminism(gold):
        return None
    result = sandbox.execute(database, [gold])[0]
    if result.status == "error":
        return None
    if result.status != "ran" or result.elapsed_ms > _SLOW_MS:
        return Target(gold, tuple(mutants), 0, known=False)
    kept: list[Mutant] = []
    dead = 0
    statements = [mutant.sql for mutant in mutants]
    for mutant, (_, outcome) in zip(mutants, _executed(sandbox, database, statements), strict=True):
        if outcome.status == "ran":
            dead |= _differs(outcome, result, gold) << len(kept)
            kept.append(mutant)
    return Target(gold, tuple(kept), dead)


def on_candidate(sandbox: Sandbox, instance: Path, twin: Path, targets: Mapping[int, Target]) -> dict[int, Outcome]:
    """What an instance does for each target for which it is usable (by the keys of `targets`).

    It is usable when the gold runs there, within all limits, and its result rests on nothing but what it asks for: not
    on ties, on where NULLs are sorted, or on the order of the rows in the file (`twin` has another). Otherwise right
    predictions would be called wrong.
    """
    numbers, golds = list(targets), [target.gold for target in targets.values()]
    found = {numbers[place]: result for place, result in _executed(sandbox, instance, golds) if result.status == "ran"}
    found = _settled(sandbox, instance, targets, found)
    for number, again in zip(list(found), _run(sandbox, twin, [targets[n].gold for n in found]), strict=True):
        if again.status != "ran" or _differs(again, found[number], targets[number].gold):
            del found[number]
    killed = dict.fromkeys(found, 0)
    asked = [(number, bit) for number in found for bit in range(len(targets[number].mutants))]
    statements = [targets[number].mutants[bit].sql for number, bit in asked]
    for place, outcome in _executed(sandbox, instance, statements):
        number, bit = asked[place]
        if outcome.status == "ran" and _differs(outcome, found[number], targets[number].gold):
            killed[number] |= 1 << bit
    return {number: Outcome(_is_filled(result), killed[number]) for number, result in found.items()}


def _settled(
    sandbox: Sandbox, instance: Path, targets: Mapping[int, Target], found: Mapping[int, Execution]
) -> dict[int, Execution]:
    """Those results of golds (by target) that no other reading of the same statement changes."""
    asked = {n: probes(targets[n].gold, len(result.columns), len(result.rows)) for n, result in found.items()}
    cut = {n: cuts(targets[n].gold) for n in found}
    flipped = {n: nulls_elsewhere(targets[n].gold) for n in found}
    statements = [sql for n in found for probe in asked[n] for pair in probe.pairs for sql in pair]
    statements += [query.sql for n in found for query in cut[n]]
    statements += [sql for sql in flipped.values() if sql is not None]
    statements = list(dict.fromkeys(statements))
    results = dict(zip(statements, _run(sandbox, instance, statements), strict=True))
    settled = {}
    for number, result in found.items():
        gold, other = targets[number].gold, flipped[number]
        stable = stability(result, asked[number], results)
        open_order = "order by" in gold.lower() and stable.ties != ()
        tied = any(
            results[query.sql].status == "ran" and query.is_tie(results[query.sql].rows) for query in cut[number]
        )
        moved = other is not None and results[other].status == "ran" and _differs(results[other], result, gold)
        if not (stable.varies or open_order or tied or moved):
            settled[number] = result
    return settled


def choose(target: Target, outcomes: Mapping[int, Outcome], k: int) -> list[int]:
    """At most `k` candidates (keys of `outcomes`), greedily: those that kill what has been killed least often.

    Candidates on which the gold has no rows come after all others, and only where they kill something.
    """
    weight = [_DECAY if target.dead >> bit & 1 else 1.0 for bit in range(len(target.mutants))]
    chosen: list[int] = []
    for filled in (True, False):
        left = {number: outcome for number, outcome in outcomes.items() if outcome.filled == filled}
        while left and len(chosen) < k:
            gains = {number: sum(weight[bit] for bit in _bits(outcome.killed)) for number, outcome in left.items()}
            best = max(gains, key=lambda number: (gains[number], -number))
            if gains[best] <= 0 and not filled:
                break
            chosen.append(best)
            for bit in _bits(left.pop(best).killed):
                weight[bit] *= _DECAY
    return chosen


def _run(sandbox: Sandbox, database: Path, statements: Sequence[str]) -> list[Execution]:
    return [result for _, result in _executed(sandbox, database, statements)]


def _executed(sandbox: Sandbox, database: Path, statements: Sequence[str]) -> Iterator[tuple[int, Execution]]:
    for start in range(0, len(statements), _CHUNK):
        results = sandbox.execute(database, statements[start : start + _CHUNK])
        yield from enumerate(results, start)


def _differs(result: Execution, gold_result: Execution, gold: str) -> bool:
    """By the rule of the policy `spider`, the most lenient one that counts rows."""
    return not compare(result.rows, gold_result.rows, "spider", "order by" in gold.lower())


def _is_filled(result: Execution) -> bool:
    """Whether there is a row with something in it: not nothing, not one row of NULL and 0."""
    return any(cell not in (None, 0) for row in result.rows for cell in row)


def _bits(number: int) -> Iterator[int]:
    bit = 0
    while number:
        if number & 1:
            yield bit
        number >>= 1
        bit += 1

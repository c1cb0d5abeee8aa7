"""Near misses: SQL that is one edit away from a gold, and that execution shows to be wrong.

What opponents write is wrong in many places at once, or not at all. A near miss is wrong in one: another operator,
aggregate, column, literal, order or limit, a condition less. It costs an execution and no generation.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from sqlglot import exp

from spftsql.databases.schema import Schema
from spftsql.records import Example, VerificationRequest
from spftsql.selfplay.candidates import NEAR_MISS, TRIED_PER_NEAR_MISS, Answer
from spftsql.selfplay.stages import Stages
from spftsql.suites.mutations import mutants
from spftsql.synthesis.canonical import parse, write

_WRONG = ("different", "error")


def near_misses(stages: Stages, questions: Sequence[Example], wanted: int) -> dict[str, list[Answer]]:
    """Up to `wanted` near misses of every question's gold by the question's id, nearest first.

    Raises `Fault` when statements could not be executed by us.
    """
    asked: dict[str, tuple[Example, str]] = {}
    requests = []
    for example in questions if wanted else ():
        for number, (text, sql) in enumerate(_written(stages, example)[: TRIED_PER_NEAR_MISS * wanted]):
            identity = f"{NEAR_MISS}/{example.id}/{number}"
            asked[identity] = example, text
            policy = stages.config.verification.policy
            requests.append(VerificationRequest(identity, example.db_id, sql, example.sql, policy))
    verdicts = stages.verify("near-misses", requests) if requests else {}
    found: dict[str, list[Answer]] = {}
    for request in requests:
        (example, text), verdict = asked[request.id], verdicts[request.id]
        own = found.setdefault(example.id, [])
        if verdict.status in _WRONG and len(own) < wanted:
            own.append(Answer(example, NEAR_MISS, text, request.sql, verdict))
    return found


def nearest(sql: str, schema: Schema, seed: int) -> list[str]:
    """Statements one edit away from `sql`, by how many nodes of the syntax tree differ, the fewest first.

    They are written as synthesis writes SQL, so that nothing but the edit tells them from the gold; `seed` draws the
    order of those that are equally near.
    """
    try:
        gold = parse(sql, schema.dialect)
    except ValueError:
        return []
    found: dict[str, int] = {}
    for mutant in mutants(sql, schema):
        tree = parse(mutant.sql, schema.dialect)
        found.setdefault(write(tree, schema.dialect), _distance(gold, tree))
    found.pop(write(gold, schema.dialect), None)
    order = [text for text in found if text != sql]
    random.Random(seed).shuffle(order)
    return sorted(order, key=found.__getitem__)


def _written(stages: Stages, example: Example) -> list[tuple[str, str]]:
    """The near misses as a model would write them, each text once and none that of the gold, and the SQL it says.

    The two differ where values are hidden: what a text says is what is executed, as with every answer.
    """
    database, question, prompts = stages.catalogue[example.db_id], example.question, stages.prompts
    seed = stages.seed_of(f"{NEAR_MISS}/{example.id}")
    texts = [prompts.answer(sql, database, question) for sql in nearest(example.sql, database.schema, seed)]
    gold = prompts.answer(example.sql, database, question)
    return [(text, prompts.parse_sql(text, database, question)) for text in dict.fromkeys(texts) if text != gold]


def _distance(one: exp.Expr, other: exp.Expr) -> int:
    """Nodes to change or add, or to change or remove, for one tree to become the other; nobody moves in one edit."""
    left, right = _nodes(one), _nodes(other)
    return max((left - right).total(), (right - left).total())


def _nodes(tree: exp.Expr) -> Counter[tuple[object, ...]]:
    """The nodes by kind and by what they say themselves."""
    return Counter(
        (type(node), *sorted((key, str(value)) for key, value in node.args.items() if isinstance(value, str | bool)))
        for node in tree.walk()
    )

"""Golds that most candidates contradict unanimously: set aside, and listed for a person to look at.

Of a synthetic pair the question may not say what its SQL asks for; a label may be wrong. When candidates that were
trained on different pairs all answer a question with one and the same other result, it is likelier that the gold is
wrong than that they are. In self-play such a pair would teach the main model to prefer the wrong SQL to the right one.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from spftsql.selfplay.candidates import Answer

FILE = "quarantine.jsonl"


@dataclass(frozen=True)
class Contradiction:
    """A gold, the SQL of a candidate that contradicts it, the candidates that agree on its result, and all asked."""

    exam: str
    id: str
    db_id: str
    question: str
    gold: str
    instead: str
    candidates: tuple[str, ...]
    asked: int


def contradicted(exam: str, answers: Mapping[str, Sequence[Answer]], fewest: int | None) -> dict[str, Contradiction]:
    """The golds of `exam` that its `answers` (by candidate) contradict, by the id of the question; none for None.

    A candidate has a say when all its samples for a question give one result that has rows: wrong SQL of any kind finds
    nothing. A gold is contradicted when nobody's sample equals it, and `fewest` candidates at least, and more than half
    of all, say the same other result.
    """
    if fewest is None:
        return {}
    said: dict[str, dict[str, list[Answer]]] = defaultdict(dict)
    for candidate, own in answers.items():
        for answer in own:
            if answer.known:
                said[answer.example.id].setdefault(candidate, []).append(answer)
    found = {}
    for identity, by_candidate in said.items():
        if any(answer.correct for own in by_candidate.values() for answer in own):
            continue
        results = {name: own[0].verdict.digest for name, own in by_candidate.items() if _agrees_with_itself(own)}
        if not results:
            continue
        digest, count = Counter(results.values()).most_common(1)[0]
        if count < fewest or 2 * count <= len(by_candidate):
            continue
        names = tuple(name for name, result in results.items() if result == digest)
        one = by_candidate[names[-1]][0]
        found[identity] = Contradiction(
            exam, identity, one.example.db_id, one.example.question, one.example.sql, one.sql, names, len(by_candidate)
        )
    return found


def _agrees_with_itself(answers: Sequence[Answer]) -> bool:
    verdicts = [answer.verdict for answer in answers]
    telling = all(v.status == "different" and v.digest and v.row_count and not v.constant_null for v in verdicts)
    return telling and len({v.digest for v in verdicts}) == 1


def read_contradictions(run_directory: Path) -> list[Contradiction]:
    """The list of a run; empty where there is none, or one that cannot be read."""
    try:
        lines = (run_directory / FILE).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        return [Contradiction(**{**row, "candidates": tuple(row["candidates"])}) for row in rows]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def quarantine_lines(found: Sequence[Contradiction]) -> str:
    """The content of the run's list, a JSON object a line."""
    return "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in found)

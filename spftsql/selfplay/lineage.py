"""The lineage of synthetic pairs: what each was made from and why it was kept, as one Parquet file for each round."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spftsql.errors import disk_faults
from spftsql.records import Example, PairRow, Statement, Verdict, write_records
from spftsql.selfplay.candidates import Candidate
from spftsql.selfplay.questions import Phrasing
from spftsql.selfplay.stages import Stages

_ROUND = re.compile(r"round-([0-9]+)\.parquet")


@dataclass(frozen=True)
class Made:
    """A statement of a round and what became of it: `pair`, or `reason` why there is none (yet).

    `worded` says that its question came with it, and no model was asked for one.
    """

    statement: Statement
    verdict: Verdict
    reason: str = ""
    phrasings: tuple[Phrasing, ...] = ()
    chosen: int | None = None
    pair: Example | None = None
    worded: bool = False

    def dropped(self, reason: str) -> Made:
        """The same without a pair."""
        return replace(self, reason=reason, pair=None)


def pair_files(run: Path) -> list[Path]:
    """The files of a run's pairs, by round; others in their folder are passed over."""
    named = ((_ROUND.fullmatch(path.name), path) for path in (run / "pairs").glob("round-*.parquet"))
    return [path for _, path in sorted((int(found[1]), path) for found, path in named if found)]


def write_pairs(
    stages: Stages,
    round_: int,
    made: Iterable[Made],
    parts: Mapping[str, str],
    question_model: Candidate,
    voter: Candidate | None,
) -> None:
    """Writes the rows of a round; `parts` says which set a pair is in, by its id. One in none was not needed."""
    asked = _Asked(stages, round_)
    rows = [_row(stages, round_, one, parts, question_model, voter, asked) for one in made]
    with disk_faults(stages.run.root):
        write_records(stages.run.root / "pairs" / f"round-{round_}.parquet", rows, PairRow)


def _row(
    stages: Stages,
    round_: int,
    made: Made,
    parts: Mapping[str, str],
    question_model: Candidate,
    voter: Candidate | None,
    generated: _Asked,
) -> PairRow:
    statement, verdict = made.statement, made.verdict
    chosen = made.phrasings[made.chosen] if made.chosen is not None else None
    part = parts.get(made.pair.id, "") if made.pair is not None else ""
    request = question_request(round_, statement)
    asked = request in generated.prompts
    answered = [vote_request(request, number) for number, one in enumerate(made.phrasings) if one.votes]
    return PairRow(
        id=pair_id(round_, statement),
        round=round_,
        db_id=statement.db_id,
        database=stages.catalogue[statement.db_id].content,
        template=statement.template,
        bindings=statement.bindings,
        seed=statement.seed,
        sql=statement.sql,
        sql_status=verdict.status,
        sql_rows=verdict.row_count,
        sql_ms=verdict.elapsed_ms,
        question_model=question_model.key if asked else None,
        question_seed=stages.seed_of(request) if asked else None,
        voter=voter.key if voter is not None and any(p.votes for p in made.phrasings) else None,
        candidates=json.dumps([_candidate(phrasing) for phrasing in made.phrasings], ensure_ascii=False),
        question=chosen.text if chosen is not None else None,
        votes=len(chosen.votes) if chosen is not None else 0,
        votes_ms=sum(vote.elapsed_ms for phrasing in made.phrasings for vote in phrasing.votes),
        confidence=chosen.agreement if chosen is not None else None,
        part=part,
        kept=bool(part),
        reason=made.reason or ("" if part else "not needed"),
        sql_engine=verdict.engine or None,
        prompt_builder=stages.prompts.hash,
        question_prompt=generated.prompts.get(request),
        questions_written_ms=generated.ms([request]),
        votes_written_ms=generated.ms(answered),
    )


class _Asked:
    """What the stages of a round's questions and votes have on disk about their requests."""

    def __init__(self, stages: Stages, round_: int) -> None:
        from spftsql.generation.work import prompt_hashes, request_seconds

        questions, votes = (stages.generated(f"{what}-{round_}") for what in ("questions", "votes"))
        self.prompts = {} if questions is None else prompt_hashes(questions / "requests.parquet")
        self._seconds: dict[str, float] = {}
        for folder in filter(None, (questions, votes)):
            self._seconds |= request_seconds(folder / "samples")

    def ms(self, requests: Sequence[str]) -> float | None:
        """How long engines had these requests; None where there are none, or nobody has noted it."""
        known = [self._seconds.get(request) for request in requests]
        seconds = [one for one in known if one is not None]
        return round(sum(seconds) * 1000, 3) if seconds and len(seconds) == len(known) else None


def pair_id(round_: int, statement: Statement) -> str:
    """The id of the pair that a statement becomes."""
    return f"synthetic/{round_}/{statement.id}"


def question_request(round_: int, statement: Statement) -> str:
    """The id of the request for a statement's questions."""
    return f"round{round_}/{statement.id}"


def vote_request(identity: str, number: int) -> str:
    """The id of the request for the SQL of a candidate question; `identity` is that of the request for questions."""
    return f"{identity}/{number}"


def _candidate(phrasing: Phrasing) -> dict[str, object]:
    votes = [{"sql": vote.sql, "status": vote.status, "ms": round(vote.elapsed_ms, 3)} for vote in phrasing.votes]
    return {
        "text": phrasing.text,
        "asks": phrasing.asks,
        "missing": list(phrasing.missing),
        "agreement": phrasing.agreement,
        "votes": votes,
    }

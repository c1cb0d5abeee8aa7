"""The lineage of a pair: which prompt asked for its question, what generation took, and which engine ran its SQL."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from spftsql.records import Example, PairRow, Statement, VerificationRequest, content_hash, read_records
from spftsql.selfplay.lineage import Made, question_request, vote_request, write_pairs
from spftsql.selfplay.questions import Phrasing, Vote
from spftsql.selfplay.stages import Stages
from tests.local_stages import local_stages, model_of

ROUND = 1
STATEMENTS = [Statement(str(n), "towns", f"SELECT name FROM town WHERE size > {n}", "t", "{}", 7) for n in range(3)]


@pytest.fixture
def stages(tmp_path: Path, tiny_models: list[str]) -> Iterator[Stages]:
    with local_stages(tmp_path, tiny_models[0]) as there:
        yield there


def ask(stages: Stages, title: str, prompts: dict[str, str]) -> None:
    candidate = model_of(stages)
    requests = [stages.request(identity, "towns", text, candidate, 2, 0.7) for identity, text in prompts.items()]
    stages.generate(title, requests, [candidate])


def made_of(stages: Stages) -> list[Made]:
    """One with a question that was voted on, one whose question came with it, and one whose SQL was dropped."""
    requests = [VerificationRequest(one.id, one.db_id, one.sql, None, "strict") for one in STATEMENTS]
    verdicts = stages.verify("sql", requests)
    vote = Vote("SELECT 1", "different", "d", 2.0)
    phrasings = (Phrasing("Which towns?", votes=(vote, vote)), Phrasing("", ()))
    pair = Example("synthetic/1/0", "towns", "Which towns?", STATEMENTS[0].sql, "synthetic", "t")
    first, second, third = (Made(one, verdicts[one.id]) for one in STATEMENTS)
    return [
        replace(first, phrasings=phrasings, chosen=0, pair=pair),
        replace(second, phrasings=(Phrasing("What?"),), chosen=0, worded=True),
        third.dropped("empty"),
    ]


def written(stages: Stages, made: Sequence[Made]) -> list[PairRow]:
    write_pairs(stages, ROUND, made, {"synthetic/1/0": "train"}, model_of(stages), model_of(stages))
    return read_records(stages.run.root / "pairs" / f"round-{ROUND}.parquet", PairRow)


def test_a_row_names_its_own_prompt_and_the_time_its_requests_took(stages: Stages) -> None:
    identity = question_request(ROUND, STATEMENTS[0])
    prompt = stages.prompts.sql_to_text(stages.catalogue["towns"], STATEMENTS[0].sql)
    ask(stages, f"questions-{ROUND}", {identity: prompt, question_request(ROUND, STATEMENTS[1]) + "x": "other"})
    ask(stages, f"votes-{ROUND}", {vote_request(identity, 0): "first", vote_request(identity, 1): "second"})
    asked, worded, dropped = written(stages, made_of(stages))
    assert asked.question_prompt == content_hash(prompt)
    assert {row.prompt_builder for row in (asked, worded, dropped)} == {stages.prompts.hash}
    assert (asked.question_model, asked.voter) == ("m-key", "m-key")
    assert asked.questions_written_ms is not None and asked.questions_written_ms > 0
    assert asked.votes_written_ms is not None and asked.votes_written_ms > 0
    assert asked.votes_ms == 4.0  # what the database took is apart
    for row in (worded, dropped):
        assert (row.question_prompt, row.questions_written_ms, row.votes_written_ms) == (None, None, None)
        assert (row.question_model, row.question_seed) == (None, None)
    assert {row.sql_engine for row in (asked, worded, dropped)} == {f"sqlite {engine_of(stages)}"}


def engine_of(stages: Stages) -> str:
    import apsw

    return apsw.sqlite_lib_version()


def test_every_request_has_its_own_time_also_after_a_resume(stages: Stages) -> None:
    identities = [question_request(ROUND, one) for one in STATEMENTS]
    ask(stages, f"questions-{ROUND}", dict.fromkeys(identities, "prompt"))
    first = written(stages, made_of(stages))
    again = Stages(stages.config, stages.run, stages.execution, stages.catalogue, stages.report)
    again.prompts = stages.prompts
    ask(again, f"questions-{ROUND}", dict.fromkeys(identities, "prompt"))  # is there already
    assert written(again, made_of(again)) == first
    assert all(row.questions_written_ms for row in first)


def test_samples_of_earlier_versions_have_no_time(stages: Stages) -> None:
    identity = question_request(ROUND, STATEMENTS[0])
    ask(stages, f"questions-{ROUND}", {identity: "prompt"})
    folder = stages.generated(f"questions-{ROUND}")
    assert folder is not None
    for file in (folder / "samples").glob("*.parquet"):
        table = pq.read_table(file)
        notes = json.loads(table.schema.metadata[b"spftsql.lineage"])
        assert list(notes.pop("seconds")) == [identity]
        lineage = {**table.schema.metadata, b"spftsql.lineage": json.dumps(notes).encode()}
        pq.write_table(table.replace_schema_metadata(lineage), file)
    row = written(stages, made_of(stages))[0]
    assert row.questions_written_ms is None and row.votes_written_ms is None
    assert row.question_prompt == content_hash("prompt")


def test_without_a_stage_of_questions_nothing_is_said_of_them(stages: Stages) -> None:
    assert stages.generated(f"questions-{ROUND}") is None
    assert {row.question_prompt for row in written(stages, made_of(stages))} == {None}

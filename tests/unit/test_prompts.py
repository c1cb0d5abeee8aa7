"""One question has one prompt: in training, in generation and evaluation, and at the endpoint."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import duckdb
import pytest
from transformers import AutoTokenizer

from serve.metrics import Metrics
from serve.models import Ask, Piece
from serve.openai_api import Completions
from serve.schemas import ChatRequest, SqlRequest
from serve.service import Service
from spftsql.config import Config, DatabaseConfig, GenerationConfig, PromptConfig, QuestionExample
from spftsql.databases.catalogue import Database, open_catalogue
from spftsql.errors import UserError
from spftsql.evaluation.local_model import LocalChoice, LocalModel
from spftsql.evaluation.sources import Question
from spftsql.linking import scoring
from spftsql.prompts import PromptBuilder
from spftsql.recipes import validate
from spftsql.records import Example, GenerationRequest, Sample, Verdict, VerificationRequest
from spftsql.sandbox.result import Execution
from spftsql.selfplay.candidates import Candidate, Exam
from spftsql.selfplay.stages import Stages
from spftsql.serving.keys import OWNER
from spftsql.serving.voting import Contest
from spftsql.verification.samples import Checks

QUESTION = "How many guests from são paulo booked rooms?"
EVIDENCE = "rooms refers to booked_rooms; VIP guests have kind = 'Gold''s'"
SMALL = 90  # tokens of a vocabulary of 320: about a fifth of the schema


@pytest.fixture
def hotel(tmp_path: Path) -> Database:
    path = tmp_path / "hotel.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE guest (id INTEGER PRIMARY KEY, city TEXT, kind TEXT, booked_rooms INT)")
        connection.execute("INSERT INTO guest VALUES (1, 'São Paulo', 'Gold''s', 2), (2, 'Ulm', 'plain', 1)")
        for number in range(10):
            connection.execute(f"CREATE TABLE other{number} (id INTEGER PRIMARY KEY, thing{number} TEXT, amount INT)")
    connection.close()
    return open_catalogue([DatabaseConfig(name="hotel", url=str(path))])["hotel"]


def builder(model: str, **settings: object) -> PromptBuilder:
    return PromptBuilder(PromptConfig(**settings), model)  # type: ignore[arg-type]


def configuration(model: str, tmp_path: Path, tokens: int) -> Config:
    tree = {
        "name": "t",
        "run_dir": str(tmp_path),
        "data": {"benchmark": "demo"},
        "model": {"path": model, "dtype": "float32"},
        "prompt": {"max_schema_tokens": tokens},
    }
    return validate(tree, "test")


class Asked(Stages):
    """Stages that note what models are asked, and have them answer nothing."""

    def generate(
        self,
        title: str,
        requests: Sequence[GenerationRequest],
        candidates: Sequence[Candidate],
        checks: Checks | None = None,
    ) -> list[Sample]:
        self.asked = [request.prompt for request in requests]
        return []

    def verify(
        self, title: str, requests: Sequence[VerificationRequest], early: Path | None = None
    ) -> dict[str, Verdict]:
        return {}


class Listening:
    """A backend that notes the prompts."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def complete(self, ask: Ask) -> list[Piece]:
        self.asked.append(ask.prompt)
        return [Piece(i, "SELECT 1", 3, "stop", 9, 0) for i in range(ask.n)]

    async def stream(self, ask: Ask) -> AsyncGenerator[list[Piece]]:
        yield await self.complete(ask)

    async def contest(self, db_id: str, candidates: Sequence[str], max_rows: int, granted: object) -> Contest:
        verdicts = [Verdict("", db_id, "ran", "", 1.0, 1, False, "d", "sqlite") for _ in candidates]
        return Contest(verdicts, Execution("ran", "", ("1",), [(1,)], 1.0, "sqlite"))


@pytest.mark.parametrize("tokens", [100_000, SMALL])
@pytest.mark.parametrize("evidence", ["", EVIDENCE])
def test_training_generation_evaluation_and_serving_ask_the_same(
    hotel: Database, tiny_models: list[str], tmp_path: Path, tokens: int, evidence: str
) -> None:
    config = configuration(tiny_models[0], tmp_path, tokens)
    run = SimpleNamespace(event=lambda *_, **__: None, root=tmp_path)
    stages = Asked(config, run, None, {"hotel": hotel}, None)  # type: ignore[arg-type]
    stages.use_prompts(tiny_models[0])
    example = Example("e", "hotel", QUESTION, "SELECT 1", "label", "t", evidence=evidence)
    trained = stages.sql_row(example).prompt
    exams = {"synthetic": Exam([example], samples=4, temperature=0.7), "test": Exam([example])}
    stages.answers("exams", [Candidate("m", tiny_models[0], "k")], exams)
    backend = Listening()
    service = Service({"m": Path(tiny_models[0])}, {"hotel": hotel}, config, backend, Metrics("test"))
    asyncio.run(service.answer(OWNER, SqlRequest(database="hotel", question=QUESTION, evidence=evidence)))
    if not evidence:
        chat = {"model": "m@hotel", "messages": [{"role": "user", "content": QUESTION}]}
        completion = asyncio.run(Completions(service).chat(OWNER, ChatRequest.model_validate(chat)))
        asyncio.run(completion.whole())
    portable = config.model_copy(update={"generation": GenerationConfig(engine="transformers")})
    measured = LocalModel(LocalChoice("m", Path(tiny_models[0]), portable))
    evaluated = measured.prompt(hotel, Question("hotel", QUESTION, "SELECT 1", evidence))
    prompts = [trained, *stages.asked, *backend.asked, evaluated]
    assert len(prompts) == (5 if evidence else 6) and set(prompts) == {trained}
    assert "guest.city = 'São Paulo'" in trained and ("other7" in trained) == (tokens > SMALL)


def in_engine(hotel: Database, engine: str, folder: Path) -> Database:
    """The same tables in a database of another engine; PostgreSQL by its schema alone."""
    if engine == "duckdb":
        path = folder / "hotel.duckdb"
        with duckdb.connect(str(path)) as connection:
            connection.execute("CREATE TABLE guest (id INTEGER PRIMARY KEY, city VARCHAR, kind VARCHAR)")
            connection.execute("INSERT INTO guest VALUES (1, 'São Paulo', 'plain')")
        return open_catalogue([DatabaseConfig(name="hotel", url=str(path))])["hotel"]
    dialect = {"sqlite": "sqlite", "postgresql": "postgres"}[engine]
    return replace(hotel, schema=replace(hotel.schema, dialect=dialect))


@pytest.mark.parametrize(
    ("engine", "dialect"), [("sqlite", "sqlite"), ("postgresql", "postgres"), ("duckdb", "duckdb")]
)
def test_prompts_name_the_dialect(
    hotel: Database, tiny_models: list[str], tmp_path: Path, engine: str, dialect: str
) -> None:
    database, prompts = in_engine(hotel, engine, tmp_path), builder(tiny_models[0])
    asks = f"\n\nWrite one {dialect} SELECT statement that answers the question below. "
    assert asks in prompts.text_to_sql(database, QUESTION, EVIDENCE)
    assert asks in prompts.text_to_sql_message(database, QUESTION)
    assert asks in prompts.repair(database, QUESTION, "SELECT x", "no such column: x")
    phrased = prompts.sql_to_text(database, "SELECT city FROM guest")
    assert f"that the {dialect} statement below answers." in phrased
    others = {"sqlite", "postgres", "duckdb"} - {dialect}
    assert not any(other in prompt for other in others for prompt in (asks, phrased))


def test_a_prompt_says_keys_kinds_comments_and_the_values_of_the_question(
    hotel: Database, tiny_models: list[str], tmp_path: Path
) -> None:
    listed = tmp_path / "tables.json"
    names = {"column_names_original": [[0, "booked_rooms"]], "column_names": [[0, "number of rooms"]]}
    tables = {"db_id": "hotel", "table_names_original": ["guest"], "table_names": ["people who stay"]}
    listed.write_text(json.dumps([tables | names]))
    config = DatabaseConfig(name="hotel", url=hotel.location.address, descriptions=listed)
    prompt = builder(tiny_models[0]).text_to_sql(open_catalogue([config])["hotel"], QUESTION, EVIDENCE)
    schema, task = prompt.split("\n\n")
    guest = "table guest (people who stay): id (number; primary key), city (text; e.g. São Paulo | Ulm), "
    assert guest + "kind (text; e.g. Gold's | plain), booked_rooms (number; number of rooms)\n" in schema
    assert "\nValues: guest.city = 'São Paulo'; guest.kind = 'Gold''s'\nHint: rooms refers" in task
    assert QUESTION in task.splitlines()[-1]


def test_questions_about_a_database_share_the_schema_as_their_beginning(
    hotel: Database, tiny_models: list[str]
) -> None:
    prompts = builder(tiny_models[0])
    first, second = (prompts.text_to_sql(hotel, q) for q in ("amounts of other3", "guests of Ulm"))
    beginning = first[: first.index("Question:")]
    assert "other9" in beginning and second.startswith(beginning[: beginning.index("\n\n")])
    assert prompts.sql_to_text(hotel, "SELECT 1").startswith(beginning[: beginning.index("\n\n")])


def test_the_model_that_phrases_questions_is_shown_how(hotel: Database, tiny_models: list[str]) -> None:
    shown = QuestionExample(sql="SELECT a FROM b WHERE c = 'x' LIMIT 3", question="Welche drei?")
    prompt = builder(tiny_models[0], question_examples=(shown, shown)).sql_to_text(hotel, "SELECT city FROM guest")
    schema, turns = prompt.split("\n\n")
    assert schema.startswith("<|user|>table ")
    first, second, last = turns.split("<|user|>")
    assert first.endswith(
        "\nThe question says: 3; x\nSQL: SELECT a FROM b WHERE c = 'x' LIMIT 3<|assistant|>Welche drei?"
    )
    assert second == "The question says: 3; x\nSQL: SELECT a FROM b WHERE c = 'x' LIMIT 3<|assistant|>Welche drei?"
    assert last == "SQL: SELECT city FROM guest<|assistant|>"


def test_examples_of_questions_are_built_in_and_can_be_left_out(hotel: Database, tiny_models: list[str]) -> None:
    usual, none = builder(tiny_models[0]), builder(tiny_models[0], question_examples=())
    assert usual.hash != none.hash
    asked = [prompts.sql_to_text(hotel, "SELECT 1") for prompts in (usual, none)]
    assert [prompt.count("SQL: ") for prompt in asked] == [6, 1]
    beginnings = {usual.sql_to_text(hotel, sql).rpartition("SQL: ")[0] for sql in ("SELECT 1", "SELECT 2")}
    assert len(beginnings) == 1  # what statements have in common is the beginning
    assert asked[1].rpartition("SQL: ")[0] + "The question" in usual.sql_to_text(hotel, "SELECT 1")
    tokens = len(AutoTokenizer.from_pretrained(tiny_models[0]).encode(asked[0], add_special_tokens=False))
    assert usual.sql_to_text(hotel, "SELECT 1", most_tokens=tokens) == asked[0]
    assert usual.sql_to_text(hotel, "SELECT 1", most_tokens=tokens - 1) == asked[1]
    wrong = builder(tiny_models[0], question_examples=(QuestionExample(sql="SELECT FROM (", question="?"),))
    with pytest.raises(UserError, match=r"prompt\.question_examples: 'SELECT FROM \(' is no SQL"):
        wrong.sql_to_text(hotel, "SELECT 1")


def test_a_statement_brings_its_own_columns_into_a_small_prompt(hotel: Database, tiny_models: list[str]) -> None:
    prompt = builder(tiny_models[0], max_schema_tokens=SMALL).sql_to_text(hotel, "SELECT thing6, amount FROM other6")
    schema = prompt[: prompt.index("\n\n")]
    assert "table other6: id" in schema and "thing6" in schema and "thing1" not in schema


def test_linking_is_a_switch_that_the_hash_knows(
    hotel: Database, tiny_models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    linked, plain = builder(tiny_models[0]), builder(tiny_models[0], linking=False)
    assert linked.hash != plain.hash and builder(tiny_models[0]).hash == linked.hash
    prompt = plain.text_to_sql(hotel, QUESTION)
    assert "Values:" not in prompt and "other7" in prompt
    assert "thing7" in builder(tiny_models[0], linking=False, max_schema_tokens=SMALL).text_to_sql(hotel, QUESTION)
    monkeypatch.setitem(scoring.WEIGHTS, "value", 9.0)
    assert builder(tiny_models[0]).hash != linked.hash and builder(tiny_models[0], linking=False).hash == plain.hash


def test_prompts_without_a_schema_are_the_question_alone(hotel: Database, tiny_models: list[str]) -> None:
    for linking in (True, False):
        prompts = builder(tiny_models[0], schema_text="none", sql_style="spaced", linking=linking)
        prompts.prepare([hotel])
        assert prompts.text_to_sql(hotel, QUESTION, EVIDENCE) == f"<|user|>{QUESTION}<|assistant|>"
        assert prompts.sql_to_text(hotel, "SELECT a.b FROM a") == "<|user|>SELECT a . b FROM a<|assistant|>"


def test_many_databases_are_linked_in_turn(
    hotel: Database, tiny_models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spftsql.prompts._LINKERS", 2)
    prompts = builder(tiny_models[0])
    copies = [Database(f"hotel{n}", hotel.location, hotel.content, hotel.schema, hotel.source) for n in range(5)]
    asked = [prompts.text_to_sql(copy, QUESTION) for copy in [*copies, *copies]]
    assert len(set(asked)) == 1

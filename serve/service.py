"""What the endpoint does with a question: prompt, model, sandbox, vote, repair. Knows neither HTTP nor Ray."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from serve.backend import Backend
from serve.cells import rows_of
from serve.descriptions import plan_response, schema_response
from serve.errors import ApiError
from serve.metrics import Metrics
from serve.models import REFUSED, Ask, Piece
from serve.schemas import (
    CandidateOut,
    PlanRequest,
    PlanResponse,
    QueryRequest,
    QueryResponse,
    SchemaResponse,
    SqlRequest,
    SqlResponse,
    Timings,
    Usage,
    VerdictOut,
)
from serve.sql_text import SqlText
from spftsql.config import Config
from spftsql.databases.catalogue import Database
from spftsql.errors import Fault
from spftsql.prompts import PromptBuilder
from spftsql.records import Verdict, content_hash
from spftsql.sandbox.result import Execution, Granted
from spftsql.serving.grants import Grant, NotGranted, granted_columns, granted_part, granted_sql
from spftsql.serving.keys import Principal
from spftsql.serving.voting import Ballot, vote

_PARTS_KEPT = 256  # granted parts of databases
_RETRY = {"Retry-After": "5"}
_SHOWN = 300  # characters of a database's message in a repair prompt

Event = tuple[str, dict[str, Any]]


@dataclass
class Written:
    """What the model has written so far: one text per sample, and tokens."""

    texts: list[str] = field(default_factory=list)
    finishes: list[str | None] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def add(self, pieces: Sequence[Piece]) -> None:
        """Takes the next pieces. Raises `ApiError` for a request that the model refuses."""
        for piece in pieces:
            if piece.finish == REFUSED:
                message = f"the model cannot serve this request: {piece.text}"
                raise ApiError(400, message, code="context_length_exceeded")
            while len(self.texts) <= piece.index:
                self.texts.append("")
                self.finishes.append(None)
            self.texts[piece.index] += piece.text
            self.finishes[piece.index] = piece.finish
            self.completion_tokens += piece.tokens
            self.prompt_tokens, self.cached_tokens = piece.prompt_tokens, piece.cached_tokens

    @property
    def usage(self) -> Usage:
        """As OpenAI counts: the prompt once."""
        total = self.prompt_tokens + self.completion_tokens
        return Usage(prompt_tokens=self.prompt_tokens, completion_tokens=self.completion_tokens, total_tokens=total)


@dataclass(frozen=True)
class _Outcome:
    """What execution says of the candidates: the results by votes, and the rows of the best."""

    ballots: list[Ballot]
    shown: Execution

    @property
    def best(self) -> Ballot:
        return self.ballots[0]

    @property
    def ran(self) -> bool:
        return self.shown.status in ("ran", "truncated")


class Service:
    """The endpoint for one base model (with adapters of it) and its databases."""

    def __init__(
        self,
        models: Mapping[str, Path],
        catalogue: Mapping[str, Database],
        config: Config,
        backend: Backend,
        metrics: Metrics,
    ) -> None:
        """`models` are directories by public name; the first answers questions.

        Loads the tokenizer. Raises `UserError` when the model directory has no chat template.
        """
        self.models_by_name = dict(models)
        self.model_name = next(iter(models))
        self.created = int(time.time())
        self.config, self.backend, self.metrics = config, backend, metrics
        self._catalogue = catalogue
        self.prompts = PromptBuilder(config.prompt, models[self.model_name], config.model.chat_template)
        self.prompts.prepare(catalogue.values())
        self._part = lru_cache(_PARTS_KEPT)(self._make_part)

    def models(self, principal: Principal) -> list[str]:
        """The names that this caller may use: the models' own with the scope `raw`, and one for each database."""
        names = list(self.models_by_name) if "raw" in principal.scopes else []
        if "ask" in principal.scopes:
            names += [f"{name}@{db}" for name in self.models_by_name for db in self._seen(principal)]
        return names

    def databases(self, principal: Principal) -> list[dict[str, Any]]:
        """Name, dialect and tables of each database, as far as this caller may know them."""
        return [self.describe(principal, name) for name in self._seen(principal)]

    def describe(self, principal: Principal, name: str) -> dict[str, Any]:
        """One of them. Raises `ApiError` where it is not there for this caller."""
        schema = self.database(principal, name).schema
        return {
            "id": name,
            "object": "database",
            "dialect": schema.dialect,
            "tables": [
                {"name": table.name, "columns": [column.name for column in table.columns]} for table in schema.tables
            ],
        }

    def schema(self, principal: Principal, name: str) -> SchemaResponse:
        """The schema of one of them, with sample values for who may ask for rows. Raises as `describe`."""
        return schema_response(self.database(principal, name).schema, samples=bool({"ask", "query"} & principal.scopes))

    def database(self, principal: Principal, name: str, param: str = "database") -> Database:
        """The database, or the part of it that is granted. Raises `ApiError` where it is not there."""
        if name not in self._catalogue or not principal.sees(name):
            known = ", ".join(self._seen(principal))
            raise ApiError(404, f"no database {name}; known: {known}", code="database_not_found", param=param)
        grant = principal.grant(name)
        if grant is None:
            return self._catalogue[name]
        part = self._part(name, tuple(sorted((table, tuple(sorted(c))) for table, c in grant.tables.items())))
        if not part.schema.tables:
            message = f"this key may read no table of {name}"
            raise ApiError(403, message, code="nothing_granted", param=param)
        return part

    def _make_part(self, name: str, grant: tuple[tuple[str, tuple[str, ...]], ...]) -> Database:
        tables = {table: frozenset(columns) for table, columns in grant}
        return granted_part(self._catalogue[name], Grant(tables))

    def _seen(self, principal: Principal) -> list[str]:
        return [name for name in self._catalogue if principal.sees(name)]

    async def answer(self, principal: Principal, request: SqlRequest) -> SqlResponse:
        """SQL for a question, executed. Raises `ApiError` for the caller's mistakes, `Fault` for ours."""
        answer: dict[str, Any] = {}
        async for name, data in self.events(principal, request.model_copy(update={"stream": False})):
            if name in ("verdict", "rows", "done"):
                answer |= data
        return SqlResponse(**answer)

    async def events(self, principal: Principal, request: SqlRequest) -> AsyncGenerator[Event]:
        """The same as it comes: `token`s (when streamed), `verdict`, `rows`, `done`; the last three add up to it.

        Before a second attempt there is `repair`, after which the `token`s are those of the other statement.
        """
        begin = time.perf_counter()
        database = self.database(principal, request.database)
        temperature = 0.0 if request.n == 1 else self.config.serve.vote_temperature
        prompt = self.prompts.text_to_sql(database, request.question, request.evidence)
        parse = partial(self.prompts.parse_sql, database=database, question=request.question)
        written = Written()
        linked = time.perf_counter()
        async for event in self._write(self.ask(prompt, request.n, temperature), written, parse, request.stream):
            yield event
        generated = time.perf_counter()
        limit = self._limit(request.max_rows)
        candidates = [parse(text) for text in written.texts]
        outcome = await self._execute(database, candidates, limit)
        executed = time.perf_counter()
        model_s, database_s = generated - linked, executed - generated

        repaired = ""
        if self._can_repair(outcome):
            reason = outcome.best.verdict.reason
            yield "repair", {"sql": outcome.best.sql, "reason": reason}
            prompt = self.prompts.repair(
                database, request.question, outcome.best.sql, reason[:_SHOWN], request.evidence
            )
            again = Written()
            start = time.perf_counter()
            try:
                async for event in self._write(self.ask(prompt, 1, 0.0), again, parse, request.stream):
                    yield event
                second = await self._timed_execute(database, parse(again.texts[0]), limit)
            except ApiError:  # the prompt with the message is too long for the model
                second = None
            model_s += time.perf_counter() - start - (second[1] if second else 0.0)
            if second is not None:
                database_s += second[1]
                written.prompt_tokens += again.prompt_tokens
                written.completion_tokens += again.completion_tokens
                if second[0].ran:
                    repaired = f"repaired: {reason}"
                    outcome = _Outcome([*second[0].ballots, *outcome.ballots], second[0].shown)
            self.metrics.repairs.at("ran" if repaired else "failed").inc()

        share = outcome.best.votes / len(candidates)
        unsure = request.abstain_below is not None and not repaired and outcome.ran and share < request.abstain_below
        shown = outcome.shown
        status, reason = shown.status, repaired or shown.reason
        if unsure:
            status, reason = "unsure", f"{outcome.best.votes} of {len(candidates)} candidates agree"
            shown = replace(shown, columns=(), rows=[])
        elif status == "truncated" and len(shown.rows) >= limit < self.config.sandbox.max_rows:
            status, reason = "ran", repaired  # cut where the caller wanted it
        self._count(database.name, status, written, model_s, database_s)
        yield (
            "verdict",
            {
                "sql": outcome.best.sql,
                "verdict": VerdictOut(status=status, reason=reason, elapsed_ms=round(shown.elapsed_ms, 3)).model_dump(),
                "candidates": [
                    CandidateOut(sql=b.sql, votes=b.votes, status=b.verdict.status).model_dump()
                    for b in outcome.ballots
                ],
            },
        )
        yield "rows", rows_of(shown, cut=not unsure and outcome.shown.status == "truncated")
        yield (
            "done",
            {
                "model": self.model_name,
                "usage": written.usage.model_dump(),
                "timings": Timings(
                    generate_ms=_ms(model_s),
                    execute_ms=_ms(database_s),
                    total_ms=_ms(time.perf_counter() - begin),
                ).model_dump(),
            },
        )

    async def query(self, principal: Principal, request: QueryRequest) -> QueryResponse:
        """A statement of the caller's own, executed in the sandbox. Raises as `answer`."""
        database = self.database(principal, request.database)
        limit = self._limit(request.max_rows)
        outcome = await self._execute(database, [request.sql], limit)
        shown = outcome.shown
        status = shown.status
        if status == "truncated" and len(shown.rows) >= limit < self.config.sandbox.max_rows:
            status = "ran"
        self.metrics.verdicts.at(database.name, status).inc()
        verdict = VerdictOut(
            status=status, reason="" if status == "ran" else shown.reason, elapsed_ms=round(shown.elapsed_ms, 3)
        )
        return QueryResponse(sql=request.sql, verdict=verdict, **rows_of(shown, cut=shown.status == "truncated"))

    async def plan(self, principal: Principal, request: PlanRequest) -> PlanResponse:
        """How a statement would be executed, and whether it may be. Raises as `answer`."""
        database = self.database(principal, request.database)
        try:
            statement = self._statement(database, request.sql)
            plan = await self.backend.plan(database.name, statement, self._granted(database))
        except NotGranted as reason:
            plan = Execution("error", f"refused: {reason}", (), [], 0.0, "")
        except Fault as fault:
            raise self._unavailable(database, fault) from None
        # Of a part of a database its indexes are not known either.
        return plan_response(request.sql, plan, index_names=database is self._catalogue[database.name])

    def ask(self, prompt: str, n: int, temperature: float, model: str = "", **options: Any) -> Ask:
        """A prompt for a model (default: the first) with the run's limits. The same one gets the same samples."""
        options = {name: value for name, value in options.items() if value is not None}
        most = options.pop("max_tokens", self.config.generation.max_tokens)
        seed = options.pop("seed", int(content_hash(prompt), 16)) % 2**31
        directory = str(self.models_by_name[model or self.model_name])
        most = min(most, self.config.model.max_length)
        return Ask(uuid.uuid4().hex, prompt, directory, n, temperature, most, seed, **options)

    async def _write(
        self, ask: Ask, written: Written, parse: Callable[[str], str], stream: bool
    ) -> AsyncGenerator[Event]:
        """Has the model write into `written`; when streamed, gives the SQL of each sample as it grows."""
        begin = time.perf_counter()
        if not stream:
            written.add(await self.backend.complete(ask))
        else:
            growing = [SqlText(parse) for _ in range(ask.n)]
            async with contextlib.aclosing(self.backend.stream(ask)) as stream_of_pieces:
                async for pieces in stream_of_pieces:
                    if not written.texts:
                        self.metrics.first_token.at(self.model_name).observe(time.perf_counter() - begin)
                    written.add(pieces)
                    for piece in pieces:
                        sql = growing[piece.index].add(piece.text)
                        sql += growing[piece.index].end() if piece.finish else ""
                        if sql:
                            yield "token", {"index": piece.index, "text": sql}
        if len(written.texts) != ask.n:
            raise Fault(f"the engine gave {len(written.texts)} samples where {ask.n} were asked for")

    async def _timed_execute(self, database: Database, sql: str, limit: int) -> tuple[_Outcome, float]:
        begin = time.perf_counter()
        outcome = await self._execute(database, [sql], limit)
        return outcome, time.perf_counter() - begin

    async def _execute(self, database: Database, candidates: Sequence[str], limit: int) -> _Outcome:
        """Executes and votes, all in one call; what is not granted votes as a statement that failed."""
        granted = self._granted(database)
        allowed: dict[str, str] = {}
        verdicts: dict[str, Verdict] = {}
        for sql in dict.fromkeys(candidates):
            try:
                allowed[sql] = self._statement(database, sql)
            except NotGranted as reason:
                verdicts[sql] = _refusal(database.name, f"refused: {reason}")
        sent = [sql for sql in candidates if sql in allowed]
        shown: Execution | None = None
        try:
            if sent:
                statements = [allowed[sql] for sql in sent]
                contest = await self.backend.contest(database.name, statements, limit, granted)
                verdicts |= dict(zip(sent, contest.verdicts, strict=True))
                shown = contest.shown
        except Fault as fault:
            raise self._unavailable(database, fault) from None
        ballots = vote(candidates, [verdicts[sql] for sql in candidates])
        best = ballots[0].verdict
        if shown is None or best.status not in ("ran", "truncated"):
            shown = Execution(best.status, best.reason, (), [], best.elapsed_ms, "")  # type: ignore[arg-type]
        return _Outcome(ballots, shown)

    def _unavailable(self, database: Database, fault: Fault) -> ApiError:
        self.metrics.verdicts.at(database.name, "fault").inc()
        return ApiError(
            503,
            f"database {database.name} cannot be asked at the moment; try again later",
            code="database_unavailable",
            headers=_RETRY,
            cause=str(fault),
        )

    def _granted(self, database: Database) -> Granted | None:
        """What is granted of a part of a database; None for the whole."""
        whole = self._catalogue[database.name]
        return None if database is whole else granted_columns(database.schema, whole.schema)

    def _statement(self, database: Database, sql: str) -> str:
        """What is executed: the statement itself, or one that reads what is granted and nothing else."""
        whole = self._catalogue[database.name]
        return sql if database is whole else granted_sql(sql, database.schema, whole.schema)

    def _can_repair(self, outcome: _Outcome) -> bool:
        return (
            self.config.serve.repair
            and self.config.prompt.schema_text != "none"  # such a model knows questions and nothing else
            and outcome.best.verdict.status == "error"
        )

    def _limit(self, max_rows: int | None) -> int:
        return min(max_rows or self.config.serve.max_rows, self.config.sandbox.max_rows)

    def _count(self, database: str, status: str, written: Written, model_s: float, database_s: float) -> None:
        self.metrics.verdicts.at(database, status).inc()
        self.metrics.execution.at(database).observe(database_s)
        self.count_tokens(self.model_name, written, model_s)

    def count_tokens(self, model: str, written: Written, seconds: float) -> None:
        """Tells the metrics of what a model wrote, in so many seconds."""
        self.metrics.generation.at(model).observe(seconds)
        self.metrics.tokens.at("prompt").inc(written.prompt_tokens)
        self.metrics.tokens.at("cached").inc(written.cached_tokens)
        self.metrics.tokens.at("completion").inc(written.completion_tokens)


def _refusal(db_id: str, reason: str) -> Verdict:
    """The verdict on a statement that is not executed."""
    return Verdict("", db_id, "error", reason, 0.0, 0, False, "", "")


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)

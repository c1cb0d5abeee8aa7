"""What the endpoint does with a request: prompt, model, sandbox, vote. Knows neither HTTP nor Ray."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

from transformers import AutoTokenizer

from serve.errors import ApiError
from serve.schemas import (
    CandidateOut,
    ChatChoice,
    ChatRequest,
    ChatResponse,
    SqlRequest,
    SqlResponse,
    Timings,
    Usage,
    VerdictOut,
)
from spftsql.config import Config
from spftsql.databases.catalogue import Database
from spftsql.errors import Fault
from spftsql.prompts import PromptBuilder
from spftsql.records import GenerationRequest, Sample, Verdict, VerificationRequest, content_hash
from spftsql.sandbox.result import Execution
from spftsql.voting import Ballot, vote

_VOTE_TEMPERATURE = 0.7
_CHAT_TEMPERATURE = 1.0  # OpenAI's default


class Backend(Protocol):
    """The model and the sandbox behind the endpoint."""

    def generate(self, request: GenerationRequest) -> Awaitable[list[Sample]]:
        """The samples of one request."""

    def verify(self, requests: Sequence[VerificationRequest]) -> Awaitable[list[Verdict]]:
        """Verdicts of statements on one database, in order."""

    def run(self, db_id: str, sql: str, max_rows: int) -> Awaitable[Execution]:
        """The rows of one statement."""


class Service:
    """The endpoint for one model and its databases."""

    def __init__(
        self,
        model_dir: Path,
        model_name: str,
        catalogue: Mapping[str, Database],
        config: Config,
        backend: Backend,
    ) -> None:
        """Loads the tokenizer. Raises `UserError` when the model directory has no chat template."""
        self.model_name = model_name
        self.created = int(time.time())
        self._model_dir, self._catalogue, self._config, self._backend = model_dir, catalogue, config, backend
        self._prompts = PromptBuilder(config.prompt, model_dir, config.model.chat_template)
        self._prompts.prepare(catalogue.values())
        self._tokenizer = AutoTokenizer.from_pretrained(str(model_dir))

    def models(self) -> list[str]:
        """The model's own name, and one name per database."""
        return [self.model_name, *(f"{self.model_name}@{name}" for name in self._catalogue)]

    def databases(self) -> list[dict[str, Any]]:
        """Name, dialect and tables of each database."""
        return [
            {
                "id": name,
                "object": "database",
                "dialect": database.schema.dialect,
                "tables": [
                    {"name": table.name, "columns": [column.name for column in table.columns]}
                    for table in database.schema.tables
                ],
            }
            for name, database in self._catalogue.items()
        ]

    async def answer(self, request: SqlRequest) -> SqlResponse:
        """SQL for a question, executed. Raises `ApiError` for the caller's mistakes, `Fault` for ours."""
        for field, wanted in (
            ("stream", request.stream),
            ("abstain_below", request.abstain_below is not None),
        ):
            if wanted:
                raise ApiError(400, f"{field} is not supported by this version", code="unsupported", param=field)
        begin = time.perf_counter()
        database = self._database(request.database)
        temperature = 0.0 if request.n == 1 else _VOTE_TEMPERATURE
        prompt = self._prompts.text_to_sql(database, request.question, request.evidence)
        samples = await self._generate(database.name, prompt, request.n, temperature)
        generated = time.perf_counter()
        limit = min(request.max_rows or self._config.serve.max_rows, self._config.sandbox.max_rows)
        ballots = await self._vote(database.name, [self._prompts.parse_sql(sample.text) for sample in samples])
        best = ballots[0]
        shown = await self._rows(database.name, best, limit)
        executed = time.perf_counter()
        # The rows were fetched by a second execution, which can fail where the first did not.
        failed = shown.status in ("error", "timeout")
        verdict = shown if failed else best.verdict
        return SqlResponse(
            sql=best.sql,
            verdict=VerdictOut(status=verdict.status, reason=verdict.reason, elapsed_ms=round(verdict.elapsed_ms, 3)),
            columns=[json_safe(name) for name in shown.columns],
            rows=[[json_safe(cell) for cell in row] for row in shown.rows],
            truncated=shown.status == "truncated",
            candidates=[CandidateOut(sql=b.sql, votes=b.votes, status=b.verdict.status) for b in ballots],
            model=self.model_name,
            usage=self._usage(prompt, samples),
            timings=Timings(
                generate_ms=_ms(begin, generated),
                execute_ms=_ms(generated, executed),
                total_ms=_ms(begin, executed),
            ),
        )

    async def chat(self, request: ChatRequest) -> ChatResponse:
        """A chat completion. Raises `ApiError` for an unknown model and for what this version does not do."""
        if request.stream:
            raise ApiError(400, "stream is not supported by this version", code="unsupported", param="stream")
        name, _, db_id = request.model.partition("@")
        if name != self.model_name:
            raise ApiError(404, f"no model {request.model}", code="model_not_found", param="model")
        if db_id:
            database = self._database(db_id, param="model")
            prompt = self._prompts.text_to_sql(database, _last_question(request))
        else:
            prompt = self._prompts.render_messages([{"role": m.role, "content": m.text} for m in request.messages])
        default = 0.0 if db_id and request.n == 1 else _VOTE_TEMPERATURE if db_id else _CHAT_TEMPERATURE
        samples = await self._generate(
            db_id,
            prompt,
            request.n,
            default if request.temperature is None else request.temperature,
            max_tokens=request.max_completion_tokens or request.max_tokens,
            seed=request.seed,
        )
        return ChatResponse(
            id=f"chatcmpl-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=request.model,
            choices=[
                ChatChoice(
                    index=index,
                    message={
                        "role": "assistant",
                        "content": self._prompts.parse_sql(sample.text) if db_id else sample.text,
                    },
                    finish_reason=sample.finish_reason,
                )
                for index, sample in enumerate(samples)
            ],
            usage=self._usage(prompt, samples),
        )

    def _database(self, name: str, param: str = "database") -> Database:
        if name not in self._catalogue:
            known = ", ".join(self._catalogue)
            raise ApiError(404, f"no database {name}; known: {known}", code="database_not_found", param=param)
        return self._catalogue[name]

    async def _generate(
        self,
        db_id: str,
        prompt: str,
        n: int,
        temperature: float,
        max_tokens: int | None = None,
        seed: int | None = None,
    ) -> list[Sample]:
        request = GenerationRequest(
            id=uuid.uuid4().hex,
            db_id=db_id,
            prompt=prompt,
            model=str(self._model_dir),
            n=n,
            temperature=temperature,
            max_tokens=min(max_tokens or self._config.generation.max_tokens, self._config.model.max_length),
            # The same question gets the same samples.
            seed=int(content_hash(prompt), 16) % 2**31 if seed is None else seed,
        )
        samples = await self._backend.generate(request)
        error = next((sample.error for sample in samples if sample.error), None)
        if error is not None:
            raise ApiError(400, f"the model cannot serve this request: {error}", code="context_length_exceeded")
        if len(samples) != n:
            raise Fault(f"the engine gave {len(samples)} samples where {n} were asked for")
        return samples

    async def _vote(self, db_id: str, candidates: Sequence[str]) -> list[Ballot]:
        distinct = list(dict.fromkeys(candidates))
        requests = [VerificationRequest(str(i), db_id, sql, None, "strict") for i, sql in enumerate(distinct)]
        verdicts = dict(zip(distinct, await self._backend.verify(requests), strict=True))
        for verdict in verdicts.values():
            if verdict.fault is not None:
                raise Fault(verdict.fault)
        return vote(candidates, [verdicts[sql] for sql in candidates])

    async def _rows(self, db_id: str, best: Ballot, limit: int) -> Execution:
        verdict = best.verdict
        if verdict.status in ("ran", "truncated"):
            return await self._backend.run(db_id, best.sql, limit)
        return Execution(verdict.status, verdict.reason, (), [], verdict.elapsed_ms, verdict.engine)  # type: ignore[arg-type]

    def _usage(self, prompt: str, samples: Sequence[Sample]) -> Usage:
        read = len(self._tokenizer(prompt, add_special_tokens=False).input_ids)
        written = sum(sample.tokens for sample in samples)
        return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


def json_safe(value: Any) -> Any:
    """A cell as JSON can say it: bytes in hexadecimal; dates, decimals and the non-finite numbers as text."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, float):
        return value if isfinite(value) else str(value)
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()  # lone surrogates have no UTF-8
    if isinstance(value, date | datetime | Decimal):
        return str(value)
    return value if value is None or isinstance(value, bool | int) else str(value)


def _last_question(request: ChatRequest) -> str:
    text = next((message.text.strip() for message in reversed(request.messages) if message.role == "user"), "")
    if not text:
        raise ApiError(
            400,
            "messages has no user message to take as the question",
            code="invalid_value",
            param="messages",
        )
    return text


def _ms(begin: float, end: float) -> float:
    return round((end - begin) * 1000, 3)

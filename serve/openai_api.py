"""OpenAI's completions over the service: `NAME` is the raw model, `NAME@DATABASE` answers a question with bare SQL."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from serve.errors import ApiError
from serve.models import Ask
from serve.schemas import ChatRequest, CompletionBase, CompletionRequest
from serve.service import Service, Written
from serve.sql_text import SqlText
from spftsql.errors import Fault
from spftsql.serving.keys import Principal

_TEMPERATURE = 1.0  # OpenAI's default
_Parse = Callable[[str], str]
_DONE = "data: [DONE]\n\n"


@dataclass(frozen=True)
class _Shape:
    """What differs between chat and plain completions in what is sent."""

    prefix: str
    whole: str
    chunk: str
    choice: Callable[[int, str, str | None], dict[str, Any]]
    delta: Callable[[int, str, str | None, bool], dict[str, Any]]


def _chat_choice(index: int, text: str, finish: str | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"index": index, "message": message, "finish_reason": finish, "logprobs": None}


def _chat_delta(index: int, text: str, finish: str | None, first: bool) -> dict[str, Any]:
    delta = ({"role": "assistant"} if first else {}) | ({"content": text} if text or first else {})
    return {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}


def _text_choice(index: int, text: str, finish: str | None, first: bool = False) -> dict[str, Any]:
    return {"index": index, "text": text, "finish_reason": finish, "logprobs": None}


_CHAT = _Shape("chatcmpl", "chat.completion", "chat.completion.chunk", _chat_choice, _chat_delta)
_TEXT = _Shape("cmpl", "text_completion", "text_completion", _text_choice, _text_choice)


class Completions:
    """The two routes. Raises `ApiError` for an unknown model and for what the key or the model does not allow."""

    def __init__(self, service: Service) -> None:
        """Takes the service, whose models, databases and prompts these are."""
        self._service = service

    async def chat(self, principal: Principal, request: ChatRequest) -> Completion:
        """A chat completion, not yet begun."""
        name, database = self._served(principal, request.model)
        if database:
            question = next((m.text.strip() for m in reversed(request.messages) if m.role == "user"), "")
            if not question:
                message = "messages has no user message to take as the question"
                raise ApiError(400, message, code="invalid_value", param="messages")
            prompt, parse = self._question(principal, database, question)
        else:
            parse = None
            messages = [{"role": m.role, "content": m.text} for m in request.messages]
            try:
                prompt = self._service.prompts.render_messages(messages)
            except Exception as error:  # the model's own template says what it takes
                message = f"the model's chat template refuses these messages: {str(error)[:300]}"
                raise ApiError(400, message, code="invalid_value", param="messages") from None
        longest = request.max_completion_tokens or request.max_tokens
        return self._completion(_CHAT, name, prompt, parse, request, longest)

    async def text(self, principal: Principal, request: CompletionRequest) -> Completion:
        """A plain completion, not yet begun."""
        name, database = self._served(principal, request.model)
        prompt, parse = request.text, None
        if database:
            if not prompt.strip():
                raise ApiError(400, "prompt has no question", code="invalid_value", param="prompt")
            prompt, parse = self._question(principal, database, prompt.strip())
        return self._completion(_TEXT, name, prompt, parse, request, request.max_tokens)

    def _question(self, principal: Principal, database: str, question: str) -> tuple[str, _Parse]:
        part = self._service.database(principal, database, param="model")
        parse = partial(self._service.prompts.parse_sql, database=part, question=question)
        return self._service.prompts.text_to_sql(part, question), parse

    def _served(self, principal: Principal, model: str) -> tuple[str, str]:
        name, at, database = model.partition("@")
        if name not in self._service.models_by_name or (at and not database):
            raise ApiError(404, f"no model {model}", code="model_not_found", param="model")
        wanted = "ask" if database else "raw"
        if wanted not in principal.scopes:
            raise ApiError(403, f"this key lacks the scope `{wanted}`", code="missing_scope", param="model")
        return name, database

    def _completion(
        self,
        shape: _Shape,
        name: str,
        prompt: str,
        parse: _Parse | None,
        request: CompletionBase,
        longest: int | None,
    ) -> Completion:
        n = request.n or 1
        default = _TEMPERATURE
        if parse:
            default = 0.0 if n == 1 else self._service.config.serve.vote_temperature
        ask = self._service.ask(
            prompt,
            n,
            default if request.temperature is None else request.temperature,
            name,
            max_tokens=longest,
            seed=request.seed,
            top_p=request.top_p,
            stop=request.stops,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            ignore_eos=request.ignore_eos,
        )
        usage = request.stream_options is not None and request.stream_options.include_usage
        return Completion(self._service, shape, request.model, name, ask, parse, usage)


class Completion:
    """One completion: `whole` or `chunks` gives it."""

    def __init__(
        self,
        service: Service,
        shape: _Shape,
        model: str,
        name: str,
        ask: Ask,
        parse: _Parse | None,
        include_usage: bool,
    ) -> None:
        """`parse` finds the SQL in an answer, where SQL is wanted."""
        self._service, self._shape, self._name, self._ask, self._parse = service, shape, name, ask, parse
        self._include_usage = include_usage
        self._head = {"id": f"{shape.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    async def whole(self) -> dict[str, Any]:
        """The completion as one object."""
        begin, written = time.perf_counter(), Written()
        written.add(await self._service.backend.complete(self._ask))
        if len(written.texts) != self._ask.n:
            raise Fault(f"the engine gave {len(written.texts)} samples where {self._ask.n} were asked for")
        self._service.count_tokens(self._name, written, time.perf_counter() - begin)
        choices = [
            self._shape.choice(index, self._parse(text) if self._parse else text, finish)
            for index, (text, finish) in enumerate(zip(written.texts, written.finishes, strict=True))
        ]
        return {**self._head, "object": self._shape.whole, "choices": choices, "usage": written.usage.model_dump()}

    async def chunks(self) -> AsyncGenerator[dict[str, Any]]:
        """The completion as it is written. Raises `ApiError` before the first one is given where it is refused."""
        begin, written = time.perf_counter(), Written()
        head = {**self._head, "object": self._shape.chunk}
        if self._include_usage:
            head["usage"] = None
        growing = [SqlText(self._parse) for _ in range(self._ask.n)] if self._parse else None
        seen: set[int] = set()
        async with contextlib.aclosing(self._service.backend.stream(self._ask)) as pieces_as_they_come:
            async for pieces in pieces_as_they_come:
                if not seen:
                    self._service.metrics.first_token.at(self._name).observe(time.perf_counter() - begin)
                written.add(pieces)
                for piece in pieces:
                    text = piece.text
                    if growing is not None:
                        text = growing[piece.index].add(text) + (growing[piece.index].end() if piece.finish else "")
                    first = piece.index not in seen
                    seen.add(piece.index)
                    if text or first or piece.finish:
                        yield {**head, "choices": [self._shape.delta(piece.index, text, piece.finish, first)]}
        self._service.count_tokens(self._name, written, time.perf_counter() - begin)
        if self._include_usage:
            yield {**head, "choices": [], "usage": written.usage.model_dump()}


async def openai_events(chunks: AsyncGenerator[dict[str, Any]]) -> AsyncGenerator[str]:
    """Server-sent events as OpenAI sends them; an error on the way is one of them, and the last."""
    try:
        async for chunk in chunks:
            yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
    except ApiError as error:
        yield f"data: {json.dumps(error.body())}\n\n"
    except Fault:
        error = ApiError(503, "the service has a fault; try again", code="fault")
        yield f"data: {json.dumps(error.body())}\n\n"
    yield _DONE


async def named_events(events: AsyncGenerator[tuple[str, dict[str, Any]]]) -> AsyncGenerator[str]:
    """Server-sent events with names, for `/v1/sql`; an error on the way is the last one, `error`."""
    try:
        async for name, data in events:
            yield f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
    except ApiError as error:
        yield f"event: error\ndata: {json.dumps(error.body())}\n\n"
    except Fault:
        error = ApiError(503, "the service has a fault; try again", code="fault")
        yield f"event: error\ndata: {json.dumps(error.body())}\n\n"


async def begun(stream: AsyncGenerator[Any]) -> AsyncGenerator[Any]:
    """The same stream, whose first item is there: what is wrong with a request is known before an answer begins."""
    try:
        first = await anext(stream)
    except StopAsyncIteration:
        return stream

    async def again() -> AsyncGenerator[Any]:
        async with contextlib.aclosing(stream):
            yield first
            async for item in stream:
                yield item

    return again()

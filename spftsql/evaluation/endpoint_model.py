"""A model behind an OpenAI-compatible address as something that can be asked.

What the network or the server gets wrong is tried again, then counted as a fault of ours and asked again by the next
evaluation; it never becomes an answer.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import httpx

from spftsql.config import PromptConfig
from spftsql.databases.catalogue import Database
from spftsql.errors import Fault, UserError
from spftsql.evaluation.answers import Ask, Done, Reply
from spftsql.evaluation.sources import Question
from spftsql.records import content_hash

_TIMEOUT = httpx.Timeout(300.0, connect=10.0)
_AGAIN = (408, 409, 425, 429)
_LONGEST_WAIT_S = 60.0
_DEAD = 3  # requests in a row that fail after all tries: the rest is not sent
_TOO_LONG = ("context length", "context window", "maximum length", "too long", "max_model_len", "longer than")


@dataclass(frozen=True)
class Patience:
    """How often a request is tried, and the seconds before the second try; they double from try to try."""

    tries: int = 6
    first_s: float = 0.5


class EndpointModel:
    """`Answerer` over `POST /chat/completions`, with up to `concurrency` requests at a time."""

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None,
        prompt: PromptConfig,
        concurrency: int = 8,
        patience: Patience | None = None,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        """Sends nothing yet. `key` is sent as a bearer token and kept nowhere.

        Raises `UserError` for what is no http address.
        """
        from spftsql.prompts import PromptBuilder

        self._url = completions_url(url)
        self.name = model
        self._prompts = PromptBuilder(prompt, None)
        self.identity = content_hash(self._url, model)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._concurrency, self._patience, self._wait = concurrency, patience or Patience(), wait
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        self._client = httpx.Client(timeout=_TIMEOUT, limits=limits, headers=self._headers)
        self._limit_name = "max_tokens"  # newer models of OpenAI take max_completion_tokens
        self._several = True  # until the server refuses n > 1
        self._stop = threading.Event()

    def prompt(self, database: Database, question: Question) -> str:
        """See `Answerer`."""
        return self._prompts.text_to_sql_message(database, question.question, question.evidence)

    def sql(self, text: str, database: Database, question: Question) -> str:
        """See `Answerer`."""
        return self._prompts.parse_sql(text, database, question.question)

    def answer(self, asks: Sequence[Ask], done: Done) -> dict[int, str]:
        """See `Answerer`."""
        ordered = sorted(asks, key=lambda ask: (ask.db_id, ask.index, ask.n))
        faults: dict[int, str] = {}
        self._stop.clear()
        failed = 0
        with ThreadPoolExecutor(self._concurrency) as threads:
            futures: dict[Future[Reply | None], Ask] = {threads.submit(self._one, ask): ask for ask in ordered}
            try:
                for future in as_completed(futures):
                    ask = futures[future]
                    try:
                        reply = future.result()
                    except Fault as fault:
                        faults[ask.index] = str(fault)
                        failed += 1
                        if failed >= _DEAD:
                            self._stop.set()
                        continue
                    if reply is None:
                        faults.setdefault(ask.index, "not asked, because the requests before it failed")
                        continue
                    failed = 0
                    done(ask, reply)
            except BaseException:
                self._stop.set()
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        return faults

    def close(self) -> None:
        """See `Answerer`."""
        self._client.close()

    def _one(self, ask: Ask) -> Reply | None:
        """All answers to one request, asked for in as few calls as the server allows; None when it is too late."""
        texts: list[str] = []
        tokens = cut = 0
        prompt_tokens: int | None = None
        while len(texts) < ask.n:
            if self._stop.is_set():
                return None
            left = ask.n - len(texts)
            tree, problem = self._call(ask, left if self._several else 1, ask.seed + len(texts))
            if problem:
                return Reply((), problem=problem)
            choices, usage = tree["choices"][:left], tree.get("usage") or {}
            texts += [str((choice.get("message") or {}).get("content") or "") for choice in choices]
            cut += sum(choice.get("finish_reason") == "length" for choice in choices)
            tokens += int(usage.get("completion_tokens") or 0)
            if usage.get("prompt_tokens") is not None:
                prompt_tokens = int(usage["prompt_tokens"])
        return Reply(tuple(texts), tokens, prompt_tokens, cut)

    def _call(self, ask: Ask, n: int, seed: int) -> tuple[dict[str, Any], str]:
        """The body of a good response, or why the model cannot be asked this. Raises `Fault` after all tries."""
        reason = ""
        for number in range(self._patience.tries):
            if number:
                self._wait(self._pause(number, reason))
            limit_name, several = self._limit_name, n > 1
            body = {
                "model": self.name,
                "messages": [{"role": "user", "content": ask.prompt}],
                "temperature": ask.temperature,
                "seed": seed,
                limit_name: ask.max_tokens,
                **({"n": n} if several else {}),
            }
            try:
                response = self._client.post(self._url, json=body)
            except httpx.ConnectError as error:
                reason = f"nothing answers at {self._url} ({error})"
                continue
            except httpx.TransportError as error:
                reason = f"{self._url} broke off ({error or type(error).__name__})"
                continue
            status = response.status_code
            if status == httpx.codes.OK:
                tree = _completion(response)
                if tree is not None:
                    return tree, ""
                reason = f"{self._url} answered something that is no chat completion"
            elif status in _AGAIN or status >= 500:
                wait = response.headers.get("retry-after", "")
                reason = f"{self._url} answered {status}: {_message(response)}"
                if wait.replace(".", "", 1).isdigit():
                    self._wait(min(float(wait), _LONGEST_WAIT_S))
            else:
                message = _message(response)
                if status in (400, 413, 422) and any(sign in message.lower() for sign in _TOO_LONG):
                    return {}, message
                if status == 400 and limit_name == "max_tokens" and "max_completion_tokens" in message:
                    self._limit_name = "max_completion_tokens"
                    continue
                if status in (400, 422) and several:
                    self._several, n = False, 1
                    continue
                raise UserError(f"{self._url} refuses the request ({status}): {message}")
        raise Fault(f"{reason}, {self._patience.tries} tries")

    def _pause(self, number: int, reason: str) -> float:
        if not reason:  # the same request in another form: nothing to wait for
            return 0.0
        return min(_LONGEST_WAIT_S, self._patience.first_s * 2.0 ** (number - 1)) * random.uniform(0.8, 1.2)


def completions_url(url: str) -> str:
    """The address that takes chat completions: `url` may be a host, end in `/v1`, or be complete.

    Raises `UserError` for what is no http address.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UserError(f"--endpoint {url}: give an address as http://HOST:PORT/v1")
    path = parsed.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path = f"{path or '/v1'}/chat/completions"
    return str(parsed.copy_with(path=path))


def key_of(variable: str | None) -> str | None:
    """The key in an environment variable. Raises `UserError` when it is named and not set."""
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise UserError(f"--key-env {variable}: this environment variable is not set")
    return key


def _completion(response: httpx.Response) -> dict[str, Any] | None:
    try:
        tree = response.json()
    except ValueError:
        return None
    choices = tree.get("choices") if isinstance(tree, dict) else None
    return tree if isinstance(choices, list) and choices and all(isinstance(c, dict) for c in choices) else None


def _message(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        text = response.text or response.reason_phrase
    return " ".join(text.split())[:300]

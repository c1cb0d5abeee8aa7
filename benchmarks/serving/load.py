"""Requests at a fixed concurrency, and their times."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

TOKENS = 24  # that every answer has
_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Side:
    """A server that speaks OpenAI's chat, under the name that its model has there."""

    name: str
    url: str
    model: str


@dataclass(frozen=True)
class Times:
    """Of one round: the time of each request, of its first token where it was streamed, and of the whole round."""

    seconds: Sequence[float]
    first: Sequence[float]
    wall: float

    @property
    def p50_ms(self) -> float:
        """The median time of a request."""
        return statistics.median(self.seconds) * 1000

    @property
    def first_p50_ms(self) -> float:
        """The median time to the first token."""
        return statistics.median(self.first) * 1000

    @property
    def per_second(self) -> float:
        """Requests answered in a second."""
        return len(self.seconds) / self.wall


def chat(side: Side, questions: Sequence[str], concurrency: int, stream: bool = False) -> Times:
    """Asks `questions`, as many at a time as `concurrency`; every answer has `TOKENS` tokens."""
    body = {"model": side.model, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "stream": stream}
    bodies = [body | {"messages": [{"role": "user", "content": question}]} for question in questions]
    return asyncio.run(_round(f"{side.url}/v1/chat/completions", bodies, concurrency))


def sql(url: str, bodies: Sequence[dict[str, Any]], concurrency: int) -> tuple[Times, list[dict[str, Any]]]:
    """Asks `/v1/sql`; also gives the answers."""
    answers: list[dict[str, Any]] = []
    return asyncio.run(_round(f"{url}/v1/sql", bodies, concurrency, answers)), answers


async def _round(
    url: str, bodies: Sequence[dict[str, Any]], concurrency: int, answers: list[dict[str, Any]] | None = None
) -> Times:
    waiting = iter(bodies)
    seconds: list[float] = []
    first: list[float] = []
    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(timeout=_TIMEOUT_S, limits=limits) as client:

        async def work() -> None:
            for body in waiting:
                begin = time.perf_counter()
                async with client.stream("POST", url, json=body) as response:
                    told = not body.get("stream")
                    async for line in response.aiter_lines():
                        if not told and '"content"' in line and '"content":""' not in line.replace(": ", ":"):
                            told = True
                            first.append(time.perf_counter() - begin)
                        if answers is not None:
                            answers.append(json.loads(line))
                    if response.status_code != httpx.codes.OK:
                        raise RuntimeError(f"{url} answered {response.status_code}")
                seconds.append(time.perf_counter() - begin)

        begin = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(concurrency)))
        return Times(seconds, first, time.perf_counter() - begin)

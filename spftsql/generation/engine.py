"""The interface of the engines, and what they share: grouping, error rows, order, and one caller at a time."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Generic, Protocol, TypeVar

from spftsql.config import Config
from spftsql.errors import Fault
from spftsql.generation.checkpoint import Checkpoint, Completion, Prompt, Unservable, error_row
from spftsql.records import GenerationRequest, Sample

T = TypeVar("T")
_TOKENIZERS_KEPT = 16


class EngineDied(Fault):
    """The engine's own process is gone: nothing more can be asked of this engine."""


class RequestsFailed(Fault):
    """The engine failed while it answered; it can be asked again, and other requests may go well."""


@dataclass(frozen=True)
class Finished:
    """A request that an engine is done with: the `at`-th it was given. `cached` prompt tokens were not read again."""

    at: int
    samples: list[Sample]
    prompt_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class Completed:
    """A prompt with its completions: one when its temperature is 0 (all would be equal), `n` otherwise."""

    at: int
    prompt: Prompt
    completions: list[Completion]
    cached_tokens: int = 0


class Engine(Protocol):
    """Something that answers prompts. Rows choose their model by directory.

    So far it has loaded models for `loading_s` seconds, and run forward passes in `steps`, one token for each sequence.
    """

    loading_s: float
    steps: int

    def stream(self, requests: Iterable[GenerationRequest]) -> Iterator[Finished]:
        """Every request as it is finished: `n` samples, or one row with `error` for one that is unservable.

        `requests` is read as there is room for more, so it may be long; requests of one model should stand together.
        A sample depends on its request alone, not on what else is asked. The engine is held until the iterator ends or
        is closed. Raises `UserError` when a model directory cannot be used, `RequestsFailed` or `EngineDied` when the
        engine fails while it answers, `Fault` when it cannot load a model.
        """

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Sample]:
        """The samples of `stream`, in the order of the requests. May be called from several threads."""

    def close(self) -> None:
        """Gives back the memory of the loaded models."""


def open_engine(config: Config) -> Engine:
    """The engine that `generation.engine` names. Loads no model yet."""
    if config.generation.engine == "vllm":
        from spftsql.generation.vllm_engine import VllmEngine

        return VllmEngine(config)
    from spftsql.generation.transformers_engine import TransformersEngine

    return TransformersEngine(config)


class Recent(Generic[T]):
    """At most `limit` values by key; the one that was not asked for longest is dropped, before the next is made."""

    def __init__(self, limit: int, drop: Callable[[T], None] | None = None) -> None:
        """`drop` is called with a value that leaves."""
        self._limit, self._drop = limit, drop
        self._values: OrderedDict[str, T] = OrderedDict()

    def get(self, key: str, make: Callable[[], T]) -> T:
        """The value of `key`, made now unless it is there."""
        if key not in self._values:
            while len(self._values) >= self._limit:
                self._leave(next(iter(self._values)))
            self._values[key] = make()
        self._values.move_to_end(key)
        return self._values[key]

    def clear(self) -> None:
        """Drops everything."""
        while self._values:
            self._leave(next(iter(self._values)))

    def _leave(self, key: str) -> None:
        value = self._values.pop(key)
        if self._drop is not None:
            self._drop(value)


class CheckpointEngine(ABC):
    """An engine over checkpoint directories; the subclasses say how token ids become completions."""

    loading_s: float
    steps: int

    def __init__(self, config: Config) -> None:
        """Loads nothing."""
        self._config = config
        self._checkpoints: Recent[Checkpoint] = Recent(_TOKENIZERS_KEPT)
        self._lock = threading.Lock()
        self.loading_s, self.steps = 0.0, 0

    @abstractmethod
    def _complete(self, checkpoint: Checkpoint, prompts: Iterator[tuple[int, Prompt]]) -> Iterator[Completed]:
        """The completions of numbered prompts, as they are finished. Loads the model when there is a prompt."""

    @abstractmethod
    def close(self) -> None:
        """See `Engine`."""

    def stream(self, requests: Iterable[GenerationRequest]) -> Iterator[Finished]:
        """See `Engine`."""
        with self._lock:
            for model, group in groupby(enumerate(requests), key=lambda numbered: numbered[1].model):
                checkpoint = self._checkpoint(model)
                refused: list[Finished] = []
                for done in self._complete(checkpoint, _prompts(checkpoint, group, refused)):
                    yield from _emptied(refused)
                    request, found = done.prompt.request, done.completions
                    repeated = found * (request.n // len(found))
                    samples = [checkpoint.sample(request, k, one) for k, one in enumerate(repeated)]
                    yield Finished(done.at, samples, len(done.prompt.tokens), done.cached_tokens)
                yield from _emptied(refused)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Sample]:
        """See `Engine`."""
        order = sorted(range(len(requests)), key=lambda i: (requests[i].model, requests[i].db_id))
        rows = {order[done.at]: done.samples for done in self.stream(requests[i] for i in order)}
        return [sample for i in range(len(requests)) for sample in rows[i]]

    def _checkpoint(self, model: str) -> Checkpoint:
        return self._checkpoints.get(model, lambda: Checkpoint(model, self._config.model.max_length))


def _prompts(
    checkpoint: Checkpoint, requests: Iterable[tuple[int, GenerationRequest]], refused: list[Finished]
) -> Iterator[tuple[int, Prompt]]:
    """The requests as tokens; those that cannot be served are left in `refused` instead."""
    for at, request in requests:
        try:
            prompt = checkpoint.encode(request)
        except Unservable as reason:
            refused.append(Finished(at, [error_row(request, str(reason))]))
        else:
            yield at, prompt


def _emptied(rows: list[Finished]) -> Iterator[Finished]:
    while rows:
        yield rows.pop()

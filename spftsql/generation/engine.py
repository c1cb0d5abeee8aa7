"""The interface of the engines, and what they share: grouping, error rows, order, and one caller at a time."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
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


class Engine(Protocol):
    """Something that answers prompts. Rows choose their model by directory."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Sample]:
        """`n` samples per request, in the order of the requests; one row with `error` for one that is unservable.

        A sample depends on its request alone, not on the batch that it comes in. May be called from several threads.
        Raises `UserError` when a model directory cannot be used, `Fault` when the engine fails.
        """

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

    def __init__(self, config: Config) -> None:
        """Loads nothing."""
        self._config = config
        self._checkpoints: Recent[Checkpoint] = Recent(_TOKENIZERS_KEPT)
        self._lock = threading.Lock()

    @abstractmethod
    def _complete(self, checkpoint: Checkpoint, prompts: Sequence[Prompt]) -> list[list[Completion]]:
        """Completions of every prompt: one when its temperature is 0 (all would be equal), `n` otherwise."""

    @abstractmethod
    def close(self) -> None:
        """See `Engine`."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Sample]:
        """See `Engine`."""
        order = sorted(range(len(requests)), key=lambda i: (requests[i].model, requests[i].db_id))
        rows: dict[int, list[Sample]] = {}
        with self._lock:
            for model, group in groupby(order, key=lambda i: requests[i].model):
                checkpoint = self._checkpoint(model)
                prompts: dict[int, Prompt] = {}
                for i in group:
                    try:
                        prompts[i] = checkpoint.encode(requests[i])
                    except Unservable as reason:
                        rows[i] = [error_row(requests[i], str(reason))]
                completions = self._complete(checkpoint, list(prompts.values())) if prompts else []
                for i, found in zip(prompts, completions, strict=True):
                    repeats = requests[i].n // len(found)
                    rows[i] = [checkpoint.sample(requests[i], k, c) for k, c in enumerate(found * repeats)]
        return [sample for i in range(len(requests)) for sample in rows[i]]

    def _checkpoint(self, model: str) -> Checkpoint:
        return self._checkpoints.get(model, lambda: Checkpoint(model, self._config.model.max_length))

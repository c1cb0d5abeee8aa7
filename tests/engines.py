"""Engines that fail as engines do, for the tests of the generation stage; actors of Ray import them from here."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

from spftsql.config import Config
from spftsql.generation.checkpoint import Checkpoint, Prompt
from spftsql.generation.engine import Completed, Engine, RequestsFailed
from spftsql.generation.stage import EngineActor
from spftsql.generation.transformers_engine import TransformersEngine

POISON = "poison"


class Poisoned(TransformersEngine):
    """Fails while a prompt that says "poison" is among those that it works on."""

    def __init__(self, config: Config, failure: type[Exception] | None) -> None:
        """Raises `failure`; without one, the process is killed as the kernel kills it."""
        super().__init__(config)
        self._failure = failure
        self.calm = False  # whether poison does it no harm
        self.asked: list[str] = []

    def _decode(self, model: Any, stops: frozenset[int], prompts: Any) -> Any:
        for _, prompt in prompts:
            self.asked.append(prompt.request.id)
            if POISON in prompt.request.prompt and not self.calm:
                if self._failure is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise _Wrapped
        return super()._decode(model, stops, prompts)

    def _complete(self, checkpoint: Checkpoint, prompts: Iterator[tuple[int, Prompt]]) -> Iterator[Completed]:
        try:
            yield from super()._complete(checkpoint, prompts)
        except RequestsFailed as error:
            assert self._failure is not None
            raise (self._failure(str(error))) from error


class _Wrapped(Exception):
    """What a library raises in the middle of its work."""


class PoisonedActor(EngineActor):
    """An actor whose process dies of a poisonous prompt, every time."""

    def open(self, config: Config) -> Engine:
        """See `EngineActor`."""
        return Poisoned(config, None)


class TogetherActor(EngineActor):
    """An actor that begins when there are two, so that one does not do all before the other is there."""

    def open(self, config: Config) -> Engine:
        """See `EngineActor`."""
        (self._work.folder / f"engine-{os.getpid()}").touch()
        return super().open(config)

    def __call__(self, batch: Any) -> Any:
        """See `EngineActor`."""
        end = time.monotonic() + 300
        while len(list(self._work.folder.glob("engine-*"))) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        return super().__call__(batch)

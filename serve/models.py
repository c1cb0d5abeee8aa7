"""The model's replicas: vLLM's async engine, or the portable engine of `generation` where vLLM is not there.

Both have the same two calls. `complete` gives whole answers; `stream` gives pieces as they are written. When the
caller goes away its call is cancelled, and vLLM drops the sequence in its next step.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from ray import serve

from spftsql.config import Config
from spftsql.errors import Fault
from spftsql.generation.checkpoint import Checkpoint, Unservable, adapter_rank
from spftsql.generation.engine import EngineDied, open_engine
from spftsql.generation.model_folders import ModelFolders
from spftsql.generation.vllm_options import adapter_options, cpu_options
from spftsql.records import GenerationRequest

_BATCH_WAIT_S = 0.002  # long enough to join requests that arrive together, too short to be felt


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt for one of the served models (`model` is a directory), and how to sample from it."""

    id: str
    prompt: str
    model: str
    n: int = 1
    temperature: float = 0.0
    max_tokens: int = 256
    seed: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """What was added to sample `index`: text and tokens; `finish` when it ended (`stop` or `length`).

    A request that the model cannot serve has one piece, `finish` is `refused` and the text says why.

    `prompt_tokens` and `cached_tokens` (of the prompt, found in the prefix cache) come with every piece. Lone
    surrogates in the text, which no answer could be sent with, become question marks.
    """

    index: int
    text: str
    tokens: int
    finish: str | None
    prompt_tokens: int
    cached_tokens: int

    def __post_init__(self) -> None:
        if not self.text.isascii():
            object.__setattr__(self, "text", self.text.encode("utf-8", "replace").decode())


REFUSED = "refused"


class ModelServer(Protocol):
    """What a replica offers."""

    async def complete(self, ask: Ask) -> list[Piece]:
        """One piece for each sample, in order. Raises `Fault`."""
        ...

    def stream(self, ask: Ask) -> AsyncIterator[list[Piece]]:
        """Pieces as they are written. Raises as `complete`."""
        ...

    async def ongoing(self) -> dict[str, int]:
        """Its process id (`pid`), the `sequences` that are not finished, and the requests that were `given_up`."""
        ...


class VllmModel:
    """A replica over vLLM's `AsyncLLM`: requests join and leave the running batch at every step."""

    def __init__(self, config: Config, models: tuple[str, ...]) -> None:
        """`models` are directories over one base: full weights, or adapters. The first question finds it warm."""
        import torch

        self._given_up = 0
        self._checkpoints = {model: Checkpoint(model, config.model.max_length) for model in models}
        bases = {checkpoint.base for checkpoint in self._checkpoints.values()}
        if len(bases) != 1:
            raise Fault(f"one replica serves one base model, not {len(bases)}")
        adapters = [model for model, checkpoint in self._checkpoints.items() if checkpoint.base != model]
        any_checkpoint = next(iter(self._checkpoints.values()))
        options = adapter_options([adapter_rank(model) for model in adapters], cpu=not torch.cuda.is_available())
        if torch.cuda.is_available():
            options |= {"dtype": config.model.dtype}
        else:
            options |= cpu_options(any_checkpoint.base, any_checkpoint.max_length)
            # By default the engine has two processes, of which one waits for the other, busily.
            options |= {"distributed_executor_backend": "uni"}
        from vllm import AsyncEngineArgs
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.async_llm import AsyncLLM

        folders = self._folders = ModelFolders(config.generation)  # vLLM reads adapters again and again
        self._adapters: Mapping[str, Any] = {
            model: LoRARequest(model, number, str(folders.of(model))) for number, model in enumerate(adapters, 1)
        }
        self._engine = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=str(folders.of(any_checkpoint.base)),
                tokenizer=models[0],
                generation_config="vllm",
                max_model_len=any_checkpoint.max_length,
                enable_prefix_caching=True,
                tensor_parallel_size=config.generation.tensor_parallel_size,
                gpu_memory_utilization=config.generation.gpu_memory_utilization,
                disable_log_stats=True,
                seed=config.seed,
                **options,
            )
        )

    async def check_health(self) -> None:
        """Raises when the engine is gone, upon which Serve replaces the replica."""
        await self._engine.check_health()

    async def ongoing(self) -> dict[str, int]:
        """See `ModelServer`."""
        sequences = self._engine.get_num_unfinished_requests()
        return {"pid": os.getpid(), "sequences": sequences, "given_up": self._given_up}

    async def complete(self, ask: Ask) -> list[Piece]:
        """See `ModelServer`."""
        pieces = [piece async for some in self._run(ask, whole=True) for piece in some]
        return sorted(pieces, key=lambda piece: piece.index)

    async def stream(self, ask: Ask) -> AsyncIterator[list[Piece]]:
        """See `ModelServer`."""
        async with contextlib.aclosing(self._run(ask, whole=False)) as outputs:
            async for pieces in outputs:
                yield pieces

    async def _run(self, ask: Ask, whole: bool) -> AsyncGenerator[list[Piece]]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        checkpoint = self._checkpoints[ask.model]
        try:
            prompt = checkpoint.encode(_generation_request(ask))
        except Unservable as reason:
            yield _refusal(str(reason))
            return
        sampling = SamplingParams(
            n=ask.n if ask.temperature > 0 else 1,  # greedy answers are all the same
            temperature=ask.temperature,
            top_p=ask.top_p,
            presence_penalty=ask.presence_penalty,
            frequency_penalty=ask.frequency_penalty,
            max_tokens=prompt.room,
            seed=ask.seed,
            stop=list(ask.stop),
            stop_token_ids=[] if ask.ignore_eos else sorted(checkpoint.stops),
            ignore_eos=ask.ignore_eos,
            output_kind=RequestOutputKind.FINAL_ONLY if whole else RequestOutputKind.DELTA,
        )
        finished = False
        try:
            async with contextlib.aclosing(
                self._engine.generate(
                    {"prompt_token_ids": prompt.tokens}, sampling, ask.id, lora_request=self._adapters.get(ask.model)
                )
            ) as outputs:
                begun: dict[int, bool] = {}
                async for output in outputs:
                    yield self._pieces(output, begun, ask)
            finished = True
        except EngineDeadError as error:
            raise EngineDied(f"the vLLM engine died: {error}") from None
        finally:
            self._given_up += not finished

    @staticmethod
    def _pieces(output: Any, begun: dict[int, bool], ask: Ask) -> list[Piece]:
        """The output's pieces; of a sample's beginning, white space is left out."""
        read, cached = len(output.prompt_token_ids or ()), output.num_cached_tokens or 0
        pieces = []
        for sample in output.outputs:
            text = sample.text if begun.get(sample.index) else sample.text.lstrip()
            begun[sample.index] = begun.get(sample.index, False) or bool(text)
            copies = range(sample.index, sample.index + 1) if ask.temperature > 0 else range(ask.n)
            tokens = len(sample.token_ids)
            pieces += [Piece(index, text, tokens, sample.finish_reason, read, cached) for index in copies]
        return pieces

    def __del__(self) -> None:
        """Called by Serve when it takes the replica down."""
        if hasattr(self, "_engine"):
            self._engine.shutdown()


class PortableModel:
    """A replica over an `Engine`. Requests that arrive while it generates form the next batch."""

    def __init__(self, config: Config, models: tuple[str, ...]) -> None:
        """Loads the model, so that the first question does not wait for it."""
        # The engine is built and used in one thread: libraries below it keep state per thread.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._engine = self._thread.submit(open_engine, config).result()
        self._tokenizers = {model: Checkpoint(model, config.model.max_length) for model in models}
        warm = GenerationRequest("warm", "", "SELECT", models[0], 1, 0.0, 1, 0)
        self._thread.submit(self._engine.generate, [warm]).result()
        self._batched.set_max_batch_size(config.generation.batch_size)  # type: ignore[attr-defined]
        self._died: EngineDied | None = None
        self._unanswered = 0

    def check_health(self) -> None:
        """Raises when the engine is gone, upon which Serve replaces the replica."""
        if self._died is not None:
            raise self._died

    async def ongoing(self) -> dict[str, int]:
        """See `ModelServer`."""
        return {"pid": os.getpid(), "sequences": self._unanswered, "given_up": 0}

    async def complete(self, ask: Ask) -> list[Piece]:
        """See `ModelServer`."""
        self._unanswered += 1
        try:
            return await self._complete(ask)
        finally:
            self._unanswered -= 1

    async def _complete(self, ask: Ask) -> list[Piece]:
        odd = {"top_p": ask.top_p != 1, "ignore_eos": ask.ignore_eos}
        odd |= {"presence_penalty": ask.presence_penalty != 0, "frequency_penalty": ask.frequency_penalty != 0}
        if any(odd.values()):
            names = ", ".join(name for name, is_set in odd.items() if is_set)
            return _refusal(f"{names}: only the engine vllm has this")
        try:
            read = len(self._tokenizers[ask.model].encode(_generation_request(ask)).tokens)
        except Unservable as reason:
            return _refusal(str(reason))
        samples = await self._batched(_generation_request(ask))
        pieces = []
        for sample in samples:
            if sample.error:
                return _refusal(sample.error)
            text, stopped = _cut(sample.text, ask.stop)
            finish = "stop" if stopped else sample.finish_reason
            pieces.append(Piece(sample.index, text, sample.tokens, finish, read, 0))
        return pieces

    async def stream(self, ask: Ask) -> AsyncIterator[list[Piece]]:
        """See `ModelServer`; all comes at once."""
        yield await self.complete(ask)

    @serve.batch(max_batch_size=256, batch_wait_timeout_s=_BATCH_WAIT_S)
    async def _batched(self, requests: list[GenerationRequest]) -> list[Any]:
        loop = asyncio.get_running_loop()
        try:
            samples = await loop.run_in_executor(self._thread, self._engine.generate, requests)
        except EngineDied as error:
            self._died = error
            raise
        by_id = {id_: list(group) for id_, group in itertools.groupby(samples, key=lambda sample: sample.id)}
        return [by_id[request.id] for request in requests]


def _refusal(reason: str) -> list[Piece]:
    return [Piece(0, reason, 0, REFUSED, 0, 0)]


def _generation_request(ask: Ask) -> GenerationRequest:
    return GenerationRequest(ask.id, "", ask.prompt, ask.model, ask.n, ask.temperature, ask.max_tokens, ask.seed)


def _cut(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """The text before the first of the stops, and whether there was one."""
    ends = [position for stop in stops if (position := text.find(stop)) >= 0]
    return (text[: min(ends)], True) if ends else (text, False)

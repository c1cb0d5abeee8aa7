"""The fast engine: one `vllm.LLM` per base model, LoRA adapters over it, on CUDA or with vLLM's CPU build.

On the CPU the engine runs in the calling process, and several small models stay loaded side by side: the import takes
ten seconds, a further model a quarter of a second. Closing an in-process LLM tears down state that the others use
until the next one is created; hence one is closed only right before that, and when creation fails all are closed.
"""

from __future__ import annotations

import gc
import os
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, count, islice
from typing import Any

from spftsql.config import Config
from spftsql.errors import Fault
from spftsql.generation.checkpoint import Checkpoint, Completion, Prompt, adapter_rank
from spftsql.generation.engine import CheckpointEngine, Completed, EngineDied, Recent, RequestsFailed
from spftsql.generation.model_folders import ModelFolders
from spftsql.generation.vllm_options import (
    cache_bytes,
    engine_options,
    environment,
    padded_rank,
    weight_bytes,
)

_LOOK_S = 1.0  # between looks at whether an engine's process lives
_CPU_MODELS_KEPT = 16
_CPU_BYTES = 4 * 1024**3  # weights and caches that may lie in the CPU's memory side by side


@dataclass
class _Loaded:
    """An LLM and its adapters, by their directories. vLLM reads an adapter anew when it has given up its place."""

    llm: Any
    size: int  # bytes of weights and cache; 0 on a GPU
    folders: ModelFolders
    adapters: dict[str, Any] = field(default_factory=dict)
    names: Iterator[int] = field(default_factory=count)  # of requests, never twice the same

    @property
    def places(self) -> int:
        """How many requests it is given at a time: twice what it works on, so that a place that is free is filled."""
        return 2 * int(self.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs)


class VllmEngine(CheckpointEngine):
    """`Engine` over vLLM."""

    def __init__(self, config: Config) -> None:
        """Imports vLLM; loads no model."""
        super().__init__(config)
        import torch

        self._cpu = not torch.cuda.is_available()
        for name, value in environment(self._cpu).items():
            os.environ.setdefault(name, value)
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.")  # of torch, about vLLM's own code
        import vllm
        from vllm.sampling_params import RequestOutputKind

        self._vllm, self._final_only = vllm, RequestOutputKind.FINAL_ONLY
        # On a GPU an engine takes all the memory that it may have, so there is room for one.
        self._models: Recent[_Loaded] = Recent(_CPU_MODELS_KEPT if self._cpu else 1, self._drop)
        self._held = 0  # bytes of the models on the CPU

    def close(self) -> None:
        """See `Engine`."""
        with self._lock:
            self._models.clear()

    def _complete(self, checkpoint: Checkpoint, prompts: Iterator[tuple[int, Prompt]]) -> Iterator[Completed]:
        first = next(prompts, None)
        if first is None:
            return
        model = self._loaded(checkpoint)
        prompts = chain([first], prompts)
        places = model.places
        waiting: dict[str, tuple[int, Prompt]] = {}
        try:
            while True:
                added = {str(next(model.names)): new for new in islice(prompts, places - len(waiting))}
                waiting |= added
                if not waiting:
                    return
                for name, output in self._step(model, checkpoint, added):
                    at, prompt = waiting.pop(name)
                    found = [
                        Completion(list(one.token_ids), one.finish_reason == "stop")
                        for one in sorted(output.outputs, key=lambda one: one.index)
                    ]
                    yield Completed(at, prompt, found, output.num_cached_tokens or 0)
        finally:
            if waiting:  # the caller wants no more, or a step failed in which case nothing is left of the engine
                self._abandon(model)

    def _step(
        self, model: _Loaded, checkpoint: Checkpoint, added: dict[str, tuple[int, Prompt]]
    ) -> list[tuple[str, Any]]:
        """Takes in requests and computes one token for each that has a place; returns those that are finished."""
        from vllm.v1.engine.exceptions import EngineDeadError

        engine = model.llm.llm_engine
        try:
            adapter = self._adapter(model, checkpoint)
            for name, (_, prompt) in added.items():
                sampling = self._sampling(prompt, checkpoint)
                engine.add_request(name, {"prompt_token_ids": prompt.tokens}, sampling, lora_request=adapter)
            self.steps += 1
            return [(output.request_id, output) for output in engine.step() if output.finished]
        except EngineDeadError as error:
            raise EngineDied(f"the vLLM engine of {checkpoint.directory} died: {error}") from error
        except Exception as error:
            raise RequestsFailed(f"vLLM failed with {checkpoint.directory}: {type(error).__name__}: {error}") from error

    def _abandon(self, model: _Loaded) -> None:
        """A scheduler that has requests nobody waits for cannot be used again."""
        self._models.clear()

    def _sampling(self, prompt: Prompt, checkpoint: Checkpoint) -> Any:
        request = prompt.request
        return self._vllm.SamplingParams(
            n=request.n if request.temperature > 0 else 1,  # vLLM gives sample i the seed `seed + i`
            temperature=request.temperature,
            max_tokens=prompt.room,
            seed=request.seed,
            stop_token_ids=sorted(checkpoint.stops),
            detokenize=False,
            output_kind=self._final_only,
        )

    def _adapter(self, model: _Loaded, checkpoint: Checkpoint) -> Any:
        if checkpoint.directory == checkpoint.base:
            return None
        from vllm.lora.request import LoRARequest

        name = checkpoint.directory
        if name not in model.adapters:
            model.adapters[name] = LoRARequest(name, len(model.adapters) + 1, str(model.folders.of(name)))
        return model.adapters[name]

    def _loaded(self, checkpoint: Checkpoint) -> _Loaded:
        rank = self._rank(checkpoint)
        try:
            return self._models.get(f"{checkpoint.base} rank {rank}", lambda: self._load(checkpoint, rank))
        except Exception as error:
            self._models.clear()
            raise Fault(f"vLLM cannot load {checkpoint.directory}: {type(error).__name__}: {error}") from error

    def _rank(self, checkpoint: Checkpoint) -> int:
        """The rank of adapters for which the engine is made; 0 for an engine without any."""
        wanted = 0 if checkpoint.directory == checkpoint.base else adapter_rank(checkpoint.directory)
        lora = self._config.training.lora
        if lora is not None and not self._cpu:
            # One engine for the base and for all that the run trains over it: loading it again takes a minute.
            wanted = max(wanted, lora.rank)
        return padded_rank(wanted) if wanted else 0

    def _load(self, checkpoint: Checkpoint, rank: int) -> _Loaded:
        base, length = checkpoint.base, checkpoint.max_length
        size = weight_bytes(base) + cache_bytes(base, length) if self._cpu else 0
        if self._held + size > _CPU_BYTES:
            self._models.clear()
        begin = time.monotonic()
        folders = ModelFolders(self._config.generation)
        try:
            weights = str(folders.of(base))
            llm = self._vllm.LLM(**engine_options(self._config, weights, length, rank, cpu=self._cpu))
        except BaseException:
            folders.close()
            raise
        self.loading_s += time.monotonic() - begin
        self._held += size
        _wake_when_dead(llm.llm_engine.engine_core)
        return _Loaded(llm, size, folders)

    def _drop(self, model: _Loaded) -> None:
        model.llm.llm_engine.engine_core.shutdown()
        del model.llm
        gc.collect()
        model.folders.close()
        self._held -= model.size


def _wake_when_dead(client: Any) -> None:
    """Wakes the caller of an engine whose process was killed.

    vLLM 0.32 notices the death and closes the sockets, but its synchronous client then waits for an answer for ever.
    """
    if not hasattr(client, "outputs_queue"):
        return  # the engine is in this process
    from vllm.v1.engine.exceptions import EngineDeadError

    reference = weakref.ref(client)

    def watch() -> None:
        while (alive := reference()) is not None:
            if alive.resources.engine_dead:
                alive.outputs_queue.put_nowait(EngineDeadError())
                return
            del alive
            time.sleep(_LOOK_S)

    threading.Thread(target=watch, daemon=True).start()

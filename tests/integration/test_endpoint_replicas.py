"""More than one model behind the endpoint: adapters of a base by name, and replicas that come and go with the load."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from spftsql.generation.model_folders import directory_key
from spftsql.recipes import resolve
from spftsql.serving.endpoint import start_endpoint
from tests.serving import learnt_model

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(900)]
LESSONS = {"who is there": "SELECT name FROM person ORDER BY id"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("replicas")
    with sqlite3.connect(path / "people.sqlite") as connection:
        connection.execute("CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT)")
        connection.execute("INSERT INTO person (name) VALUES ('Ada'), ('Bob')")
    return path


def adapter_of(base: Path, folder: Path, seed: int) -> Path:
    """An adapter with random weights: what it says is different from its base, and known from transformers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    lora = LoraConfig(r=8, lora_alpha=64, target_modules="all-linear", init_lora_weights=False)
    peft: Any = get_peft_model(model, lora)
    peft.peft_config["default"].base_model_name_or_path = str(base)
    peft.save_pretrained(folder)
    return folder


def said_by(model: Path, adapter: Path | None, prompt: str, tokens: int) -> str:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, causal = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    if adapter is not None:
        causal = PeftModel.from_pretrained(causal, adapter)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        written = causal.generate(input_ids=ids, max_new_tokens=tokens, do_sample=False)
    return str(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)).lstrip()


@pytest.fixture(scope="module")
def served(ray_session: None, folder: Path) -> Iterator[tuple[str, Path, dict[str, Path]]]:
    from ray import serve

    settings = {
        "generation.engine": "vllm",
        "serve.port": 0,
        "serve.max_replicas": 2,
        "serve.requests_per_replica": 4,
        "serve.idle_seconds": 5,
        "generation.max_tokens": 200,
        "generation.node_cache": folder / "node",
    }
    config = resolve("demo", [f"{name}={value}" for name, value in settings.items()])
    model = learnt_model(folder / "model", LESSONS, config.prompt)
    adapters = {f"tiny:{name}": adapter_of(model, folder / name, seed) for seed, name in enumerate(("one", "two"))}
    try:
        yield (
            start_endpoint(model, "tiny", {"people": str(folder / "people.sqlite")}, config, adapters),
            model,
            adapters,
        )
    finally:
        serve.shutdown()


def test_adapters_of_one_base_answer_by_their_names(served: tuple[str, Path, dict[str, Path]], folder: Path) -> None:
    url, model, adapters = served
    names = [entry["id"] for entry in httpx.get(f"{url}/v1/models", timeout=60).json()["data"]]
    assert names == ["tiny", *adapters, "tiny@people", *(f"{name}@people" for name in adapters)]

    def ask(name: str) -> str:
        body = {"model": name, "prompt": "who is there", "max_tokens": 12, "temperature": 0}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=120).json()
        assert answer["model"] == name
        return str(answer["choices"][0]["text"])

    wanted = {name: said_by(model, path, "who is there", 12) for name, path in {"tiny": None, **adapters}.items()}
    assert len(set(wanted.values())) == 3
    copies = {path.name for path in (folder / "node" / "models").iterdir() if path.is_dir()}
    assert copies == {directory_key(path) for path in (model, *adapters.values())}
    with ThreadPoolExecutor(6) as threads:  # in one batch of the engine
        said = list(threads.map(ask, [*wanted, *wanted]))
    assert said == [*wanted.values(), *wanted.values()]
    sql = httpx.post(f"{url}/v1/sql", json={"database": "people", "question": "who is there"}, timeout=120).json()
    assert (sql["model"], sql["rows"]) == ("tiny", [["Ada"], ["Bob"]])


def replicas() -> int:
    from ray import serve

    return serve.status().applications["endpoint"].deployments["model"].replica_states.get("RUNNING", 0)


def until(there: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, replicas()
        time.sleep(0.5)


def test_replicas_of_the_model_come_with_requests_and_go_without(served: tuple[str, Path, dict[str, Path]]) -> None:
    url = served[0]
    until(lambda: replicas() == 1, 120)
    body = {"model": "tiny", "prompt": "who", "max_tokens": 200, "n": 8, "ignore_eos": True, "temperature": 1.0}
    statuses: list[int] = []
    grown = False

    def load() -> None:
        with httpx.Client(timeout=300) as client:
            while not grown:
                statuses.append(client.post(f"{url}/v1/completions", json=body).status_code)

    with ThreadPoolExecutor(12) as threads:
        asking = [threads.submit(load) for _ in range(12)]
        try:
            until(lambda: replicas() == 2, 300)
        finally:
            grown = True
        for each in asking:
            each.result()
    assert len(statuses) >= 12 and set(statuses) == {200}
    until(lambda: replicas() == 1, 300)
    again = httpx.post(f"{url}/v1/sql", json={"database": "people", "question": "who is there"}, timeout=120)
    assert again.json()["rows"] == [["Ada"], ["Bob"]]

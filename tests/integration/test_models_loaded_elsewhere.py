"""What a training leaves, loaded by vLLM and by peft as any other model: nothing of ours is asked in between."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spftsql.config import LoraConfig, ScratchConfig
from spftsql.generation.vllm_options import cpu_options, environment
from spftsql.training.export import export
from spftsql.training.local import train_local
from tests import trainings

pytestmark = [pytest.mark.integration, pytest.mark.long]

SCRATCH = ScratchConfig(hidden_size=64, layers=2, heads=2, intermediate_size=96, vocabulary=400, dropout=0.0)
PROMPTS = [trainings.prompt(state) for state in trainings.STATES]
Load = Callable[..., Any]


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    """`vllm.LLM` of a directory, its tokenizer and generation settings included."""
    pytest.importorskip("vllm")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(cpu=True).items():
            patch.setitem(os.environ, name, value)
        from vllm import LLM

        def load_(model: Path, **settings: Any) -> Any:
            return LLM(model=str(model), max_model_len=64, **cpu_options(str(model), 64), **settings)

        yield load_


def of_vllm(llm: Any, adapter: Path | None = None) -> list[str]:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    greedy = SamplingParams(temperature=0.0, max_tokens=24)
    request = LoRARequest("ours", 1, str(adapter)) if adapter else None
    return [output.outputs[0].text for output in llm.generate(PROMPTS, greedy, lora_request=request, use_tqdm=False)]


def of_transformers(model: Any, folder: Path) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        answer = model.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids["input_ids"].shape[1] :]
        texts.append(tokenizer.decode(answer, skip_special_tokens=True))
    return texts


def test_an_adapter_and_its_merged_form(load: Load, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM

    base = trainings.base_model(tmp_path, SCRATCH)
    job = trainings.job_of(base, tmp_path, 120, "adapter")
    train_local([job], trainings.config_of(lora=LoraConfig(rank=8, alpha=16)), tmp_path / "m.jsonl", lambda *_: None)
    adapter = job.output
    expected = of_transformers(AutoPeftModelForCausalLM.from_pretrained(adapter), adapter)
    right = [answer.strip() == trainings.sql(state) for answer, state in zip(expected, trainings.STATES, strict=True)]
    assert sum(right) >= 6  # it has learned something, so that these answers are the adapter's
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    assert of_transformers(loaded, base) == expected
    llm = load(base, enable_lora=True, max_lora_rank=8)
    assert of_vllm(llm, adapter) == expected
    assert of_vllm(llm) == of_transformers(AutoModelForCausalLM.from_pretrained(base), base) != expected
    merged = export(str(adapter), True, tmp_path / "merged", None, lambda text: None)
    assert merged is not None
    assert of_vllm(load(merged)) == expected


def test_a_complete_model(load: Load, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    job = trainings.job_of(trainings.base_model(tmp_path, SCRATCH), tmp_path, 120, "model")
    train_local([job], trainings.config_of(), tmp_path / "m.jsonl", lambda *_: None)
    expected = of_transformers(AutoModelForCausalLM.from_pretrained(job.output), job.output)
    assert [answer.strip() for answer in expected] == [trainings.sql(state) for state in trainings.STATES]
    assert of_vllm(load(job.output)) == expected

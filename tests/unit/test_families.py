# ruff: noqa: RUF001 (the special tokens of DeepSeek-Coder)
"""The models' families: what is tokenized for training is, token by token, what generation reads and shall write.

Tokenizers and models are made here: byte-level BPE over a small text, with the special tokens of each family and chat
templates in its documented format. The golden sequences are written with tokens as text, `·` between them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from spftsql.config import Config, GenerationConfig, ModelConfig, Optimization, PromptConfig, TrainingConfig
from spftsql.errors import UserError
from spftsql.generation.checkpoint import Checkpoint
from spftsql.prompts import PromptBuilder
from spftsql.records import GenerationRequest, TrainRow, write_records
from spftsql.training.artefact import load_tokenizer
from spftsql.training.batches import collate
from spftsql.training.job import TrainJob, prepare
from spftsql.training.local import train_local

SQL = "SELECT name FROM state"
QUESTION = "which states ?"
GREETING = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
TEXTS = [SQL, QUESTION, GREETING, "### Instruction: ### Response:"]

QWEN = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\n" + GREETING + "<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages if message['role'] != 'system' %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
LLAMA = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.first %}{{ bos_token + content }}{% else %}{{ content }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '### Instruction:\\n' + message['content'] + '\\n' }}{% else %}"
    "{{ '### Response:\\n' + message['content'] + '\\n<|EOT|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:' }}{% endif %}"
)
PLAIN = "{{ bos_token }}{% for message in messages %}Q: {{ message['content'] }}\\n{% endfor %}A:".replace("\\n", "\n")


@dataclass(frozen=True)
class Family:
    """A family: its special tokens and template, how its tokenizer is saved, and the golden prompt and completion."""

    special: tuple[str, ...]
    end: str
    bos: str | None
    template: str | None
    tokenizer_class: str
    adds_bos: bool  # what its own call puts before a text: generation and training must not let it
    architecture: str
    prompt: str


FAMILIES = {
    "qwen2.5": Family(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>", None, QWEN, "Qwen2Tokenizer", False, "qwen2",
        "<|im_start|>·system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.·<|im_end|>·\n·"
        "<|im_start|>·user\n{}·<|im_end|>·\n·<|im_start|>·assistant\n",
    ),
    "llama-3": Family(
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>", "<|begin_of_text|>", LLAMA, "PreTrainedTokenizerFast", True, "llama",
        "<|begin_of_text|>·<|start_header_id|>·user·<|end_header_id|>·\n\n{}·<|eot_id|>·"
        "<|start_header_id|>·assistant·<|end_header_id|>·\n\n",
    ),
    "deepseek-coder": Family(
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<|EOT|>"),
        "<|EOT|>", "<｜begin▁of▁sentence｜>", DEEPSEEK, "LlamaTokenizerFast", True, "llama",
        "<｜begin▁of▁sentence｜>·### Instruction:\n{}\n### Response:",
    ),
    "no template": Family(
        ("<s>", "</s>"), "</s>", "<s>", None, "PreTrainedTokenizerFast", True, "llama", "<s>·Q: {}\nA:",
    ),
}  # fmt: skip


def build(family: Family, folder: Path) -> Path:
    """A model directory of the family: its tokenizer as the family saves it, and random weights."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(family.special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 9, trainer)
    if family.adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, tokenizer.token_to_id(family.bos))]
        )
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": family.tokenizer_class,
        "eos_token": family.end,
        "pad_token": family.special[0] if family.bos is None else family.special[1],
        "model_max_length": 256,
        "clean_up_tokenization_spaces": False,
    }
    settings |= {"bos_token": family.bos, "add_bos_token": True} if family.bos else {}
    settings |= {"chat_template": family.template} if family.template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    sizes = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
        "eos_token_id": tokenizer.token_to_id(family.end),
        "bos_token_id": tokenizer.token_to_id(family.bos) if family.bos else None,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kinds: dict[str, Callable[..., Any]] = {"qwen2": Qwen2Config, "llama": LlamaConfig}
        AutoModelForCausalLM.from_config(kinds[family.architecture](**sizes)).save_pretrained(folder)
    return folder


def config_of(folder: Path, family: Family) -> Config:
    template = None
    if family.template is None:
        template = folder.parent / "template.jinja"
        template.write_text(PLAIN, encoding="utf-8")
    return Config(
        name="t",
        data={"benchmark": "demo"},  # type: ignore[arg-type]
        model=ModelConfig(path=str(folder), max_length=200, chat_template=template),
        prompt=PromptConfig(schema_text="none"),
        generation=GenerationConfig(engine="transformers"),
        training=TrainingConfig(),
    )


@pytest.fixture(params=list(FAMILIES))
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Family, Path, Config, TrainJob]:
    family = FAMILIES[request.param]
    folder = build(family, tmp_path / "model")
    config = config_of(folder, family)
    prompts = PromptBuilder(config.prompt, folder, config.model.chat_template)
    prompt = prompts.render_messages([{"role": "user", "content": QUESTION}])
    row = TrainRow("1", "db", prompt, SQL, f"{SQL} s", 1, "label")
    write_records(tmp_path / "rows.parquet", [row], TrainRow)
    optimization = Optimization(steps=1, batch_size=1)
    job = TrainJob("out", folder, tmp_path / "rows.parquet", tmp_path / "out", "spft-a", optimization, seed=0)
    return family, folder, config, job


def pieces(tokenizer: Any, ids: list[int], family: Family) -> str:
    """Tokens as text: every special token by itself, what stands between them as one piece."""
    found: list[str] = []
    plain: list[int] = []
    for token in [*ids, None]:
        text = None if token is None else tokenizer.convert_ids_to_tokens(token)
        if token is not None and text not in family.special:
            plain.append(token)
            continue
        if plain:
            found.append(tokenizer.decode(plain))
            plain = []
        if text is not None:
            found.append(text)
    return "·".join(found)


def test_golden_tokens(made: tuple[Family, Path, Config, TrainJob]) -> None:
    family, folder, config, job = made
    tokenizer = load_tokenizer(folder)
    (row,) = prepare(job, config).rows
    assert pieces(tokenizer, row.prompt, family) == family.prompt.format(QUESTION)
    assert pieces(tokenizer, row.chosen, family) == f"{SQL}·{family.end}"
    assert row.rejected is not None and pieces(tokenizer, row.rejected, family) == f"{SQL} s·{family.end}"
    begin = tokenizer.convert_tokens_to_ids(family.bos) if family.bos else None
    assert (row.prompt + row.chosen).count(begin) == (1 if family.bos else 0)
    # BPE is whole: words are tokens, not bytes that a replaced splitter would leave.
    assert len(row.chosen) < len(SQL) / 2


def test_generation_reads_the_same_tokens(made: tuple[Family, Path, Config, TrainJob]) -> None:
    _, folder, config, job = made
    (row,) = prepare(job, config).rows
    prompts = PromptBuilder(config.prompt, folder, config.model.chat_template)
    text = prompts.render_messages([{"role": "user", "content": QUESTION}])
    checkpoint = Checkpoint(str(folder), config.model.max_length)
    request = GenerationRequest("1", "db", text, str(folder), 1, 0.0, 20, 0)
    assert checkpoint.encode(request).tokens == row.prompt
    assert row.chosen[-1] in checkpoint.stops  # generation ends where training taught it to


def test_the_mask_covers_the_sql_and_its_end_alone(made: tuple[Family, Path, Config, TrainJob]) -> None:
    _, _, config, job = made
    prepared = prepare(job, config)
    (row,) = prepared.rows
    for sharing in ("none", "tree"):
        micro = collate([row], prepared.pad_id, False, sharing)  # type: ignore[arg-type]
        scored = micro.target[micro.scored]
        sequences = [scored[micro.sequence == s].tolist() for s in (0, 1)]
        assert sequences == [row.chosen, row.rejected]
        assert not micro.in_prompt.any()


def test_a_trained_model_is_of_its_family(made: tuple[Family, Path, Config, TrainJob]) -> None:
    """The output has the tokenizer and the template byte by byte, and the same prompt again."""
    from transformers import AutoModelForCausalLM

    family, folder, config, job = made
    train_local([job], config, job.output.parent / "metrics.jsonl", lambda *_: None)
    assert (job.output / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    given = PromptBuilder(config.prompt, folder, config.model.chat_template)
    kept = PromptBuilder(config.prompt, job.output)  # without the file: the template travels with the model
    message = [{"role": "user", "content": QUESTION}]
    assert kept.render_messages(message) == given.render_messages(message)
    causal = AutoModelForCausalLM.from_pretrained(job.output)
    assert causal.config.model_type == family.architecture


def test_a_model_without_template_needs_one(tmp_path: Path) -> None:
    folder = build(FAMILIES["no template"], tmp_path / "model")
    with pytest.raises(UserError, match=r"has no chat template: set model\.chat_template to a Jinja file"):
        PromptBuilder(PromptConfig(), folder)

"""A model from nothing: its tokenizer, its directory, and the refusal of a tokenizer that is not its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from spftsql.config import ScratchConfig
from spftsql.errors import UserError
from spftsql.training.artefact import check_tokenizer, copy_tokenizer, read_manifest, tokenizer_hash
from spftsql.training.scratch import SPECIAL_TOKENS, build_scratch_model

TEXTS = [
    "what states border texas ?",
    "how many cities named austin are in texas",
    "select city0.city_name from city as city0 where city0.state_name = ' texas ' ;",
    "select count ( * ) from state as state0 where state0.population >= 1000000 ;",
] * 8
SMALL = ScratchConfig(hidden_size=32, layers=2, heads=2, intermediate_size=48, vocabulary=400, dropout=0.1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("scratch") / "base"
    build_scratch_model(SMALL, 128, TEXTS, target, seed=3)
    return target


@pytest.fixture(scope="module")
def tokenizer(model: Path):  # type: ignore[no-untyped-def]
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


@pytest.mark.parametrize(
    "text",
    [
        "select city0.city_name from city",
        " select 1",
        "naïve – 東京 🙂 “quotes”",
        "a  b\n\tc   ",
        "x<=3 and y<>'it''s'",
        "Upper CASE 12.50 %",
        "",
        "   ",
    ],
)
def test_decoding_gives_the_text_back(tokenizer, text: str) -> None:  # type: ignore[no-untyped-def]
    back = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert back in (text, f" {text}")


def test_a_word_has_the_same_tokens_everywhere(tokenizer) -> None:  # type: ignore[no-untyped-def]
    at_start = tokenizer("texas", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(at_start) == ["Ġtexas"]
    assert tokenizer("in texas", add_special_tokens=False)["input_ids"][-1:] == at_start
    assert tokenizer("<|user|>texas", add_special_tokens=False)["input_ids"][1:] == at_start
    assert tokenizer("<|user|> texas", add_special_tokens=False)["input_ids"][1:] == at_start


def test_punctuation_stands_apart(tokenizer) -> None:  # type: ignore[no-untyped-def]
    pieces = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a.b_1 >= (3) , 'x y'?")]
    assert pieces == ["Ġa", ".", "b_1", "Ġ>=", "Ġ(", "3", ")", "Ġ,", "Ġ'", "x", "Ġy", "'", "?"]


def test_chat_template_and_special_tokens(tokenizer) -> None:  # type: ignore[no-untyped-def]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "texas ?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|system|>Be brief.<|user|>texas ?<|assistant|>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert [tokenizer.convert_ids_to_tokens(i) for i in ids if i < len(SPECIAL_TOKENS)] == [
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
    ]
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|pad|>", "<|end|>")
    assert tokenizer.decode(ids, skip_special_tokens=True).split() == ["Be", "brief.", "texas", "?"]


def test_the_directory_is_an_ordinary_model(model: Path, tokenizer) -> None:  # type: ignore[no-untyped-def]
    from transformers import AutoModelForCausalLM

    causal = AutoModelForCausalLM.from_pretrained(model)
    assert type(causal).__name__ == "Qwen2ForCausalLM"
    assert causal.config.tie_word_embeddings and causal.config.vocab_size == len(tokenizer)
    assert causal.generation_config.eos_token_id == tokenizer.eos_token_id
    ids = tokenizer("<|user|>texas<|assistant|>", add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert causal.generate(ids, max_new_tokens=4, do_sample=False).shape[1] <= ids.shape[1] + 4
    assert read_manifest(model)["dropout"] == 0.1
    assert {file.name for file in model.iterdir()} >= {"model.safetensors", "tokenizer.json", "generation_config.json"}


def test_weights_follow_the_seed(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    before = torch.random.get_rng_state()
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        build_scratch_model(SMALL, 128, TEXTS, tmp_path / name, seed)
    assert torch.equal(before, torch.random.get_rng_state())
    a, b, c = (load_file(tmp_path / name / "model.safetensors")["model.norm.weight"] for name in "abc")
    assert torch.equal(a, b) and torch.equal(a, c)  # norms start at 1
    key = "model.layers.0.mlp.up_proj.weight"
    a, b, c = (load_file(tmp_path / name / "model.safetensors")[key] for name in "abc")
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_a_foreign_tokenizer_is_refused(model: Path, tmp_path: Path) -> None:
    check_tokenizer(model)
    mixed, other = tmp_path / "mixed", tmp_path / "other"
    shutil.copytree(model, mixed)
    build_scratch_model(SMALL, 128, [text.upper() for text in TEXTS], other, seed=3)
    copy_tokenizer(other, mixed, None)
    with pytest.raises(UserError, match=r"put the original tokenizer\.json back"):
        check_tokenizer(mixed)
    (mixed / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        tokenizer_hash(mixed)

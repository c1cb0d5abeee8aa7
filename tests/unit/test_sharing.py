"""Beginnings that are computed once: the same numbers and gradients as without, for every family, and the same run."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spftsql.config import Config, LoraConfig, ModelConfig, Optimization, ScratchConfig, TrainingConfig
from spftsql.errors import UserError
from spftsql.records import TrainRow, write_records
from spftsql.training import scoring
from spftsql.training.batches import Encoded, Micro, Sharing, collate
from spftsql.training.flops import forward_flops
from spftsql.training.job import TrainJob
from spftsql.training.local import train_local
from spftsql.training.model import CompletionModel, sequence_sums, set_dropout
from spftsql.training.prefixes import Forest, forest
from spftsql.training.scratch import build_scratch_model

SIZES: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
TOKENS = st.lists(st.integers(0, 3), min_size=2, max_size=12)


def seen_by(packed: Forest) -> np.ndarray:
    """[T, T]: what each token sees, from the paths of the sequences alone."""
    seen = np.zeros((len(packed.ids), len(packed.ids)), bool)
    for path in packed.paths:
        for n, token in enumerate(path):
            seen[token, path[: n + 1]] = True
    return seen


@settings(max_examples=60, deadline=None)
@given(
    schemas=st.lists(st.tuples(TOKENS, st.integers(0, 200)), min_size=1, max_size=3),
    tails=st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=8),
)
def test_a_forest_holds_every_sequence(
    schemas: list[tuple[list[int], int]], tails: list[tuple[list[int], list[int]]]
) -> None:
    sequences, prompts = [], []
    for n, (question, answer) in enumerate(tails):
        words, longer = schemas[n % len(schemas)]
        prompt = words + [5] * longer + question
        sequences.append(prompt + answer)
        prompts.append(len(prompt))
    packed = forest(sequences, prompts)
    for sequence, path in zip(sequences, packed.paths, strict=True):
        assert packed.ids[path].tolist() == sequence
        assert packed.depth[path].tolist() == list(range(len(sequence)))
    assert len(packed.ids) == len({int(token) for path in packed.paths for token in path})
    seen = seen_by(packed)
    token = np.arange(len(packed.ids))
    assert np.array_equal((token <= token[:, None]) & (token[:, None] < packed.until), seen)
    assert [t for block in packed.blocks for t in range(block.start, block.end)] == token.tolist()
    for block in packed.blocks:
        assert not seen[block.start : block.end, : block.keys].any()
        if block.chain:
            length = block.end - block.start
            assert np.array_equal(seen[block.start : block.end, block.keys : block.end], np.tri(length, dtype=bool))


def test_what_is_shared_is_there_once() -> None:
    schema = list(range(200))
    packed = forest([[*schema, 1, 2, n] for n in range(8)], [201] * 8)
    assert len(packed.ids) == 202 + 8
    system = [9] * 20  # what all prompts begin with makes no tree of everything
    packed = forest([[*system, *[n] * 300, 1] for n in range(4)], [320] * 4)
    assert len(packed.ids) == 4 * 321 and all(block.chain for block in packed.blocks)


def encoded(seed: int = 0, schemas: int = 2, questions: int = 3, schema_length: int = 150) -> list[Encoded]:
    rng = random.Random(seed)
    rows = []

    def words(low: int, high: int) -> list[int]:
        return [rng.randrange(2, SIZES["vocab_size"]) for _ in range(rng.randint(low, high))]

    for schema in range(schemas):
        text = words(schema_length, schema_length + 40)
        for question in range(questions):
            chosen = words(4, 20)
            rejected = chosen[: rng.randrange(4)] + words(3, 20)
            prompt = text + words(5, 25)
            rows.append(Encoded(f"{schema}/{question}", "label", prompt, [*chosen, 1], [*rejected, 1], 1))
    rows.append(Encoded("replay", "label", words(30, 40), [*words(5, 9), 1], None, None))
    return rows


def model_of(family: str, **changes: Any) -> Any:
    import transformers

    known: dict[str, dict[str, Any]] = {
        "Qwen2": {"tie_word_embeddings": True},
        "Qwen3": {"head_dim": 12},
        "Mistral": {"sliding_window": None},
        "Llama": {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 128,
            }
        },
        "DeepSeek": {  # DeepSeek-Coder is a Llama with stretched positions
            "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 100000.0, "factor": 4.0},
        },
    }  # fmt: skip
    name = "Llama" if family == "DeepSeek" else family
    config = getattr(transformers, f"{name}Config")(**(SIZES | known[family] | changes))
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForCausalLM")(config)


def dense_logps(causal: Any, rows: list[Encoded]) -> tuple[Tensor, Tensor]:
    """Chosen and rejected log-probabilities from the whole logits of each sequence by itself."""

    def one(prompt: list[int], completion: list[int]) -> Tensor:
        logits = causal(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits, -1).gather(1, torch.tensor(completion)[:, None]).sum()

    chosen = torch.stack([one(row.prompt, row.chosen) for row in rows])
    return chosen, torch.stack([one(row.prompt, row.rejected) for row in rows if row.rejected is not None])


def loss_of(summed: Tensor, micro: Micro) -> Tensor:
    chosen, rejected = summed[~micro.is_rejected], summed[micro.is_rejected]
    return nn.functional.softplus(rejected - chosen[: len(rejected)]).sum() - 0.1 * chosen.sum()


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("Qwen2", "plain"),
        ("Llama", "checkpointing"),
        ("DeepSeek", "lora"),
        *(
            pytest.param(family, kind, marks=pytest.mark.long)
            for family in ("Qwen2", "Qwen3", "Mistral", "Llama", "DeepSeek")
            for kind in ("plain", "checkpointing", "lora")
        ),
    ],
)
def test_shared_equals_dense(family: str, kind: str) -> None:
    rows = encoded()
    causal = model_of(family).double()
    expected = torch.cat(dense_logps(causal, rows)).detach()
    if kind == "lora":
        from peft import LoraConfig as PeftConfig
        from peft import get_peft_model

        settings = PeftConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        get_peft_model(causal, settings).double()
        expected = torch.cat(dense_logps(causal, rows)).detach()
    if kind == "checkpointing":
        causal.config.use_cache = False
        causal.gradient_checkpointing_enable({"use_reentrant": False})
    module = CompletionModel(causal, "tree").train()
    gradients = {}
    for sharing in ("none", "tree"):
        micro = collate(rows, 0, False, sharing)  # type: ignore[arg-type]
        summed = sequence_sums(module(micro), micro)
        assert summed.dtype == torch.float64
        torch.testing.assert_close(summed, expected, atol=1e-9, rtol=0)
        module.zero_grad()
        torch.autograd.backward(loss_of(summed, micro))
        gradients[sharing] = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    assert gradients["tree"].keys() == gradients["none"].keys() and gradients["tree"]
    for name, gradient in gradients["none"].items():
        torch.testing.assert_close(gradients["tree"][name], gradient, atol=1e-6, rtol=0)  # norms are float32
    assert collate(rows, 0, False, "tree").computed < 0.3 * collate(rows, 0, False, "none").computed


def test_the_prompt_is_scored_as_often_as_it_stands_there() -> None:
    rows, module = encoded(), CompletionModel(model_of("Qwen2").double(), "tree")
    sums = []
    for sharing in ("none", "tree"):
        micro = collate(rows, 0, True, sharing)  # type: ignore[arg-type]
        logps = module(micro)
        sums.append(torch.stack([logps[micro.in_prompt].sum(), logps[~micro.in_prompt].sum()]))
        assert int(micro.in_prompt.sum()) == sum((len(r.prompt) - 1) * (2 if r.rejected else 1) for r in rows)
    torch.testing.assert_close(sums[1], sums[0], atol=1e-9, rtol=0)


def test_logits_are_made_in_chunks_of_scored_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, causal = encoded(), model_of("Llama").double()
    module = CompletionModel(causal, "tree").train()
    micro = collate(rows, 0, False, "tree")
    whole = module(micro)
    torch.autograd.backward(whole.sum())
    expected = {name: p.grad.clone() for name, p in module.named_parameters()}
    module.zero_grad()
    monkeypatch.setitem(scoring.LOGITS_AT_A_TIME, "cpu", 7 * SIZES["vocab_size"])
    seen: list[tuple[int, ...]] = []
    original = nn.functional.linear

    def linear(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        result = original(values, weight, bias)
        if weight.shape[0] == SIZES["vocab_size"]:
            seen.append(tuple(result.shape))
        return result

    monkeypatch.setattr(nn.functional, "linear", linear)
    chunked = module(micro)
    assert sum(rows for rows, _ in seen) == len(micro.target) and max(rows for rows, _ in seen) <= 7
    torch.testing.assert_close(chunked, whole)
    torch.autograd.backward(chunked.sum())
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-12, rtol=0)


def test_gradients_of_scored_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((5, 4), (9, 4), (9,))
    )
    target = torch.tensor([0, 8, 3, 3, 1])
    assert torch.autograd.gradcheck(lambda *values: scoring.target_logps(*values, target), (hidden, weight, bias))


def test_the_output_layer_still_gives_logits() -> None:
    causal = model_of("Qwen2")
    ids = torch.tensor([[5, 6, 7]])
    before = causal(ids).logits
    CompletionModel(causal, "tree")
    torch.testing.assert_close(causal(ids).logits, before)


def test_dropout_keeps_the_expected_values() -> None:
    """With dropout the noise is shared as the tokens are; on average nothing changes."""
    rows, causal = encoded(schemas=1, questions=2, schema_length=130), model_of("Qwen2")
    set_dropout(causal, 0.1)
    module = CompletionModel(causal, "tree").train()
    torch.manual_seed(0)
    means = {}
    for sharing in ("none", "tree"):
        micro = collate(rows, 0, False, sharing)  # type: ignore[arg-type]
        draws = torch.stack([sequence_sums(module(micro), micro).detach() for _ in range(25)])
        assert draws.std(0).min() > 0
        means[sharing] = draws.mean(0), draws.std(0) / 25**0.5
    difference = means["tree"][0] - means["none"][0]
    assert (difference.abs() < 5 * (means["tree"][1] + means["none"][1])).all()


def test_attention_that_is_more_than_causal_is_not_shared() -> None:
    causal = model_of("Qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1)
    with pytest.raises(UserError, match=r"sliding attention cannot share beginnings; set training\.sharing to none"):
        CompletionModel(causal, "tree")
    CompletionModel(causal, "none")


def test_a_model_that_changes_its_logits_is_refused() -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    causal = GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=8.0))
    with pytest.raises(UserError, match=r"granite cannot be trained: it changes its logits \(logits_scaling\)"):
        CompletionModel(causal, "none")


def test_operations_are_counted_where_they_are_done() -> None:
    from spftsql.planning.shapes import Shape

    shape = Shape("Qwen2ForCausalLM", 8, 3, 2, 2, 16, 50, 64, tied=True)
    row = Encoded("a", "label", [5] * 10, [6, 1], [7, 8, 1], 1)
    weights = 3 * (4 * 8 * 8 + 3 * 8 * 16)
    dense = collate([row], 0, False, "none")  # two sequences of 13 with padding, 5 scored tokens
    assert forward_flops(shape, dense) == 2 * weights * 26 + 2 * 400 * 5 + 4 * 3 * 8 * (2 * 13 * 14 / 2)
    tree = collate([row], 0, False, "tree")
    seen = sum(range(1, 11)) + (11 + 12) + (11 + 12 + 13)
    assert forward_flops(shape, tree) == 2 * weights * 15 + 2 * 400 * 5 + 4 * 3 * 8 * seen


STEPS = 50
SCRATCH = ScratchConfig(hidden_size=32, layers=2, heads=2, intermediate_size=48, vocabulary=400, dropout=0.0)
TABLES = ["city", "state", "river", "lake", "road", "mountain"]


def text_rows(mode: str) -> list[TrainRow]:
    """Questions over four schemas; of the answers every third is right."""
    rows = []
    for schema in range(4):
        words = " , ".join(
            f"{table} ( {TABLES[(n * k + schema) % 6]} )" for n, table in enumerate(TABLES) for k in (1, 2, 3)
        )
        for n, table in enumerate(TABLES):
            right = f"select {table} from {TABLES[(n + schema) % 6]}"
            wrong = f"select {TABLES[(n + 2) % 6]} from {table}"
            rows.append(
                TrainRow(
                    id=f"{schema}/{table}",
                    db_id=str(schema),
                    prompt=f"<|user|>schema {schema} : {words} question : {table} ?<|assistant|>",
                    chosen=right,
                    rejected=None if mode == "sft" else (wrong if n % 3 else right),
                    reward=None if mode == "sft" else int(n % 3 > 0),
                    source="label",
                    replay=mode != "sft" and n == 5,
                )
            )
    return rows


@pytest.mark.parametrize(
    ("mode", "changes", "lora"),
    [
        ("sft", {}, None),
        ("spft-a", {"nll_weight": 0.1, "weigh": "question"}, None),
        pytest.param("spft-b", {"form": "hinge", "normalise": "mean"}, None, marks=pytest.mark.long),
        pytest.param("spin", {}, LoraConfig(rank=4, alpha=8, dropout=0.0), marks=pytest.mark.long),
        pytest.param("dpo", {}, None, marks=pytest.mark.long),
    ],
)
def test_the_loss_curve_with_sharing_is_the_dense_one(
    tmp_path: Path, mode: str, changes: dict[str, Any], lora: LoraConfig | None
) -> None:
    rows = text_rows(mode)
    base = tmp_path / "base"
    build_scratch_model(SCRATCH, 256, [row.prompt + row.chosen for row in rows], base, seed=0)
    data = tmp_path / "rows.parquet"
    write_records(data, rows, TrainRow)
    optimization = Optimization(steps=STEPS, batch_size=12, learning_rate=3e-3)
    job = TrainJob("none", base, data, tmp_path / "none", mode, optimization, seed=1, lambda_=0.5, **changes)  # type: ignore[arg-type]
    curves: dict[Sharing, list[dict[str, float]]] = {}
    for sharing in ("none", "tree"):
        config = Config(
            name="t",
            data={"benchmark": "demo"},  # type: ignore[arg-type]
            model=ModelConfig(scratch=SCRATCH, max_length=256),
            training=TrainingConfig(
                micro_batch=6, micro_tokens=700, prompt_loss=0.3, sharing=sharing, lora=lora, questions_per_schema=4
            ),
        )
        metrics = tmp_path / f"{sharing}.jsonl"
        train_local([replace(job, name=sharing, output=tmp_path / sharing)], config, metrics, lambda *_: None)
        curves[sharing] = [json.loads(line) for line in metrics.read_text().splitlines()]
    dense, shared = curves["none"], curves["tree"]
    assert len(dense) == len(shared) == STEPS
    for one, other in zip(dense, shared, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-4), one["step"]
        assert other["tokens"] == one["tokens"]
    assert dense[-1]["loss"] < dense[0]["loss"]
    assert sum(line["computed_tokens"] for line in shared) < 0.7 * sum(line["computed_tokens"] for line in dense)
    if mode != "sft":
        assert shared[-1]["margin_start"] == pytest.approx(shared[0]["margin"])
        assert shared[-1].keys() >= {"chosen_drift", "rejected_drift", "preferred", "wrong"}

"""Sizes of known model architectures, and what they cost in memory: pure arithmetic for `--dry-run`.

The estimates leave out fragmentation and the few buffers that do not grow with the model; `HEADROOM` is left for them.
How the parts of training are counted follows the ZeRO paper (arXiv 1910.02054, section 3): bf16 weights and
gradients, and float32 master weights and two Adam moments.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from spftsql.config import Config, LoraConfig, ScratchConfig
from spftsql.errors import UserError

GIB = 2**30
LOGITS_AT_A_TIME = {"cpu": 2**23, "cuda": 2**27}  # in training: 32 MiB in float32, and 512 MiB, which keeps a GPU busy
HEADROOM = 0.1  # share of a GPU that is left free: CUDA context, fragmentation, communication buffers

# Architectures that both engines serve and that training has the layer sizes for.
ARCHITECTURES = frozenset(
    {
        "Gemma2ForCausalLM",
        "GraniteForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
    }
)


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder with gated feed-forward layers and grouped-query attention."""

    architecture: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    context: int  # tokens that its positions reach
    tied: bool = False
    head_size: int | None = None

    @property
    def _linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the linear layers of one decoder layer."""
        size = self.head_size or self.hidden // self.heads
        queries, keys = self.heads * size, self.kv_heads * size
        h, i = self.hidden, self.intermediate
        return [(h, queries), (h, keys), (h, keys), (queries, h), (h, i), (h, i), (i, h)]

    @property
    def parameters(self) -> int:
        """Weights of the whole model; biases and norms, less than 0.1 %, are left out."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return embeddings + self.layers * sum(a * b for a, b in self._linears)

    def lora_parameters(self, lora: LoraConfig) -> int:
        """Weights of adapters on every linear layer but the output."""
        return self.layers * sum(lora.rank * (a + b) for a, b in self._linears)

    def kv_bytes(self, value_bytes: int) -> int:
        """Bytes of the KV cache for one token."""
        return 2 * self.layers * self.kv_heads * (self.head_size or self.hidden // self.heads) * value_bytes

    def activation_bytes(self, tokens: int, value_bytes: int, checkpointing: bool) -> int:
        """Bytes that the backward pass needs of the forward pass over `tokens` tokens, without the output layer.

        Per layer and token: its input, two norms, queries, keys, values, attention and its output (about 8 hidden
        sizes) and three feed-forward values. With checkpointing the layers' inputs are kept and one layer is whole.
        """
        layer = tokens * value_bytes * (8 * self.hidden + 3 * self.intermediate)
        return tokens * value_bytes * self.hidden * self.layers + layer if checkpointing else layer * self.layers

    def logit_bytes(self, tokens: int, device: str) -> int:
        """Bytes of the logits at `tokens` positions that exist at a time on a "cuda" or "cpu" device.

        In the model's type and in float32, and of their softmax and its slope in the same.
        """
        return min(tokens * self.vocabulary, max(LOGITS_AT_A_TIME[device], self.vocabulary)) * 12


# From the models' published config.json. DeepSeek-Coder "7B" of the paper is taken to be v1.5.
KNOWN = {
    "Qwen/Qwen2.5-Coder-1.5B-Instruct": Shape("Qwen2ForCausalLM", 1536, 28, 12, 2, 8960, 151936, 32768, tied=True),
    "Qwen/Qwen2.5-Coder-7B-Instruct": Shape("Qwen2ForCausalLM", 3584, 28, 28, 4, 18944, 152064, 32768),
    "Qwen/Qwen2.5-Coder-14B-Instruct": Shape("Qwen2ForCausalLM", 5120, 48, 40, 8, 13824, 152064, 32768),
    "Qwen/Qwen2.5-Coder-32B-Instruct": Shape("Qwen2ForCausalLM", 5120, 64, 40, 8, 27648, 152064, 32768),
    "meta-llama/Meta-Llama-3-8B-Instruct": Shape("LlamaForCausalLM", 4096, 32, 32, 8, 14336, 128256, 8192),
    "deepseek-ai/deepseek-coder-7b-instruct-v1.5": Shape("LlamaForCausalLM", 4096, 30, 32, 32, 11008, 102400, 4096),
}


def scratch_shape(config: ScratchConfig, max_length: int) -> Shape:
    """The shape of a model built from scratch."""
    return Shape(
        "Qwen2ForCausalLM",
        config.hidden_size,
        config.layers,
        config.heads,
        config.heads,
        config.intermediate_size,
        config.vocabulary,
        max_length,
        tied=True,
    )


def shape_of_directory(folder: Path) -> Shape:
    """The shape that a model directory's config.json gives. Raises `UserError` when it does not say enough."""
    try:
        tree = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{folder} is not a model directory: it has no readable config.json") from None
    try:
        return Shape(
            architecture=tree["architectures"][0],
            hidden=tree["hidden_size"],
            layers=tree["num_hidden_layers"],
            heads=tree["num_attention_heads"],
            kv_heads=tree.get("num_key_value_heads") or tree["num_attention_heads"],
            intermediate=tree["intermediate_size"],
            vocabulary=tree["vocab_size"],
            context=tree["max_position_embeddings"],
            tied=tree.get("tie_word_embeddings", False),
            head_size=tree.get("head_dim"),
        )
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"{folder / 'config.json'} does not describe a decoder: {error} is missing") from None


def value_bytes(config: Config) -> int:
    """Bytes of one weight of the recipe's models."""
    return 4 if config.model.dtype == "float32" else 2


def kept_bytes(config: Config, shape: Shape) -> int:
    """Bytes of a trained model as it is kept: of its adapters alone, unless they are merged into it.

    Where one process trains (`execution: local`), adapters stay in float32.
    """
    lora = config.training.lora
    if lora is None or lora.keep == "merged":
        return shape.parameters * value_bytes(config)
    return shape.lora_parameters(lora) * (4 if config.execution == "local" else value_bytes(config))


def gib(count: float) -> str:
    """Bytes as GiB, or as MiB where they are few."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 or count <= 0 else f"{count / 2**20:.1f} MiB"


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes per GPU while training, by what they are for, and bytes of host memory over all workers."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    host: float

    @property
    def total(self) -> float:
        """Bytes per GPU."""
        return self.weights + self.gradients + self.optimizer + self.activations


def training_memory(
    shape: Shape,
    *,
    workers: int,
    zero_stage: int,
    offload: bool,
    lora: LoraConfig | None,
    value_bytes: int,
    tokens: int,
    scored: int,
    device: str,
    checkpointing: bool,
) -> TrainingMemory:
    """Memory of a training that computes `tokens` tokens at a time on each of `workers` GPUs (or workers on CPUs).

    Logits are computed at `scored` of them, some at a time. ZeRO shards the optimizer from stage 1, gradients from
    stage 2, weights from stage 3; offloading moves the optimizer to the host.
    """
    trained = shape.lora_parameters(lora) if lora else shape.parameters
    frozen = shape.parameters if lora else 0
    optimizer = trained * 12 / (workers if zero_stage >= 1 else 1)
    gradients = trained * value_bytes / (workers if zero_stage >= 2 else 1)
    weights = (trained + frozen) * value_bytes / (workers if zero_stage >= 3 else 1)
    activations = shape.activation_bytes(tokens, value_bytes, checkpointing)
    return TrainingMemory(
        weights=weights,
        gradients=gradients,
        optimizer=0 if offload else optimizer,
        activations=activations + shape.logit_bytes(scored, device),
        host=optimizer * workers if offload else 0,
    )


@dataclass(frozen=True)
class GenerationMemory:
    """Bytes per GPU while generating: weights, and what is left for the KV cache; `sequences` fit into it."""

    weights: float
    cache: float
    sequences: float


def generation_memory(
    shape: Shape, *, gpu_bytes: float, utilization: float, tensor_parallel: int, value_bytes: int, length: int
) -> GenerationMemory:
    """Memory of one engine over `tensor_parallel` GPUs; `sequences` counts whole sequences of `length` tokens."""
    weights = shape.parameters * value_bytes / tensor_parallel
    # What an engine keeps beside weights and cache: activations of a prefill, graphs.
    overhead = 1.5 * GIB
    cache = gpu_bytes * utilization - weights - overhead
    per_token = shape.kv_bytes(value_bytes) / min(tensor_parallel, shape.kv_heads)
    return GenerationMemory(weights, cache, max(0.0, cache / per_token / length))

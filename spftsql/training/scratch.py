"""A small model from nothing: a BPE tokenizer trained on the run's own text, and random Qwen2 weights.

The directory is an ordinary one: transformers and vLLM load it as they load any other. Training a tokenizer again on
the same text gives another vocabulary, so this is done once per run (see `artefact`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from spftsql.config import ScratchConfig
from spftsql.training.artefact import quiet_transformers, write_manifest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, END = "<|pad|>", "<|end|>"
SPECIAL_TOKENS = (PAD, END, "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# transformers 5 gives every model of type qwen2 the tokenizer class of the Qwen2 family, which keeps the vocabulary of
# tokenizer.json and replaces how it splits text; an entry for a class of the model's own is what makes it (and vLLM,
# which asks it) take the file as it is. The class is never imported unless remote code is trusted; then it is this.
_CODE_FILE = "tokenization_scratch.py"
_AUTO_MAP = {"AutoTokenizer": [None, "tokenization_scratch.ScratchTokenizer"]}
_CODE = """from transformers import PreTrainedTokenizerFast


class ScratchTokenizer(PreTrainedTokenizerFast):
    pass
"""

# The pieces that BPE merges within, over byte-level text (a blank is Ġ, the bytes of other alphabets are À–ÿ and Ģ–Ń):
# a word or number with the blank before it; a comparison; any other single character with the blank before it.
_WORD = "A-Za-z0-9_¡-ÿĢ-Ń"
_PIECES = rf"Ġ?[{_WORD}]+|Ġ?(?:[<>!=]=|<>)|Ġ?[^{_WORD}Ġ]|Ġ"


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE tokenizer with at most `vocabulary` entries, special tokens and all 256 bytes included.

    A word after a blank is one piece with its blank, and so is a word at the start of the text or after a special
    token: the same word has the same tokens everywhere. Punctuation stands apart. Decoding gives the text back, with
    one blank more at its start where it had none.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # First the bytes, then the pieces: the blank before the text is added once, not before every piece.
            pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False),
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def build_scratch_model(config: ScratchConfig, max_length: int, texts: Iterable[str], target: Path, seed: int) -> None:
    """Writes a complete model directory with random weights (from `seed`) and a tokenizer trained on `texts`.

    `max_length` is the longest sequence in tokens. Embeddings are tied. `config.dropout` acts on attention weights by
    the model's own setting, and on embeddings and residual branches while training (`model.set_dropout`): the
    architecture that is saved does not know of it.
    """
    import torch
    from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    quiet_transformers()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(texts, config.vocabulary),
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(SPECIAL_TOKENS[2:]),
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    architecture = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        attention_dropout=config.dropout,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        dtype="float32",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(architecture)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    target.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    settings = json.loads((target / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "auto_map": _AUTO_MAP}
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    (target / _CODE_FILE).write_text(_CODE, encoding="utf-8")
    write_manifest(target, base="scratch", dropout=config.dropout)

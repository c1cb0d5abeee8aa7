"""What lies beside the weights of a model directory: its tokenizer, and `spftsql.json`, which says whose they are.

A tokenizer belongs to its checkpoint. Weights read through another tokenizer answer nonsense without any error, so
every directory written here carries the hash of its tokenizer, and a directory in which the two disagree is refused.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from spftsql.errors import UserError

MANIFEST = "spftsql.json"
REMOVED = "weights-removed.txt"  # beside the manifest of a model whose weights were given up (`retention`)
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")  # which file holds the vocabulary, in order of preference
# What splitters disagree about: blanks, line breaks, digits, signs, letters beyond ASCII.
_PROBE = "### Schema:\nSELECT a.b2, 'Zürich'  FROM t1\n\tWHERE c >= 10.25 -- año 2024"
WEIGHTS = (".safetensors", ".bin")  # endings of the files that hold weights
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16
_COPIED = (
    *_TOKENIZERS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "tokenization_scratch.py",
)


def quiet_transformers() -> None:
    """No bars for loading and writing weights: progress is shown once, by the caller."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def resolve_model(model: str | Path) -> Path:
    """The directory of a model: `model` itself, or the local snapshot of a Hub name (downloaded when missing).

    Raises `UserError` when there is neither.
    """
    check_place(model)
    folder = Path(model)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(str(model), ignore_patterns=["*.gguf", "*.pth", "original/*"]))
    except (HFValidationError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"model {model} is no directory, and the Hub does not give it: {reason}") from None


def check_place(model: str | Path) -> None:
    """Raises `UserError` for a path, which no name on the Hub is, where there is no directory."""
    text = str(model)
    is_path = Path(text).is_absolute() or text.startswith((".", "~")) or text.count("/") > 1 or text.endswith("/")
    if is_path and not Path(text).is_dir():
        raise UserError(
            f"model {text}: there is no such directory; give a model's directory, or its name on the Hub as OWNER/NAME"
        )


def named_base(folder: Path) -> str | None:
    """The base model that an adapter directory names, a directory or a Hub name; None for complete weights."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        return None
    return str(json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"])


def load_tokenizer(folder: Path | str) -> Any:
    """The tokenizer of a model directory (or Hub name), as its `tokenizer.json` says.

    transformers 5 builds some classes anew and keeps the vocabulary alone: a DeepSeek-Coder tokenizer, which names
    Llama's class, then loses every blank and line break without an error. Where the two disagree on a text the file is
    taken as it is. Raises what transformers raises.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils.hub import cached_file

    tokenizer = AutoTokenizer.from_pretrained(folder)
    file = cached_file(str(folder), "tokenizer.json", _raise_exceptions_for_missing_entries=False)
    if file is None:
        return tokenizer
    expected = Tokenizer.from_file(file).encode(_PROBE, add_special_tokens=False).ids
    if tokenizer(_PROBE, add_special_tokens=False, verbose=False)["input_ids"] == expected:
        return tokenizer
    return PreTrainedTokenizerFast.from_pretrained(folder)


def tokenizer_hash(folder: Path) -> str:
    """A hash of the file that holds the tokenizer of a model directory. Raises `UserError` when there is none."""
    for name in _TOKENIZERS:
        if (folder / name).is_file():
            return hashlib.sha256((folder / name).read_bytes()).hexdigest()[:16]
    raise UserError(f"model directory {folder} has no {' or '.join(_TOKENIZERS)}")


def weights_key(folder: Path) -> str:
    """A hash that tells the weights of model directories apart: sizes of the weight files, and samples of them.

    Not all bytes: of a large model they would take minutes to read from shared storage.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in WEIGHTS):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for part in range(_SAMPLES):
                file.seek(part * size // _SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of `spftsql.json`; empty for a directory that this project did not write."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return manifest


def write_manifest(folder: Path, **details: Any) -> None:
    """Writes `spftsql.json` for the tokenizer that lies in `folder`."""
    text = json.dumps({"tokenizer": tokenizer_hash(folder), **details}, indent=2, default=str)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def check_tokenizer(folder: Path) -> None:
    """Raises `UserError` when the tokenizer of a directory is not the one that its weights were trained with.

    A directory without `spftsql.json` (a model from elsewhere) passes.
    """
    expected = read_manifest(folder).get("tokenizer")
    if expected is not None and (found := tokenizer_hash(folder)) != expected:
        raise UserError(
            f"{folder}: the weights were trained with tokenizer {expected}, but tokenizer.json is {found}; "
            "put the original tokenizer.json back (training a tokenizer again gives another vocabulary)"
        )


def copy_tokenizer(source: Path, target: Path, chat_template: Path | None) -> None:
    """Copies tokenizer, chat template and generation settings byte by byte; `chat_template` replaces the template."""
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if chat_template is not None:
        shutil.copyfile(chat_template, target / "chat_template.jinja")

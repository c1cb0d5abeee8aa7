"""What an engine knows of a checkpoint before its weights are loaded: tokenizer, stop tokens, longest sequence."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spftsql.errors import UserError
from spftsql.records import GenerationRequest, Sample


@dataclass(frozen=True)
class Prompt:
    """A request as token ids, with `room` for that many new tokens."""

    request: GenerationRequest
    tokens: list[int]
    room: int


@dataclass(frozen=True)
class Completion:
    """The tokens that a model wrote, the stop token included; `stopped` when it ended by itself."""

    tokens: list[int]
    stopped: bool


class Unservable(Exception):
    """A request that this checkpoint cannot serve; the message becomes the row's `error`."""


def adapter_base(directory: str) -> str | None:
    """The base model of a peft adapter directory; `None` for a directory with full weights."""
    from spftsql.training.artefact import named_base, resolve_model

    base = named_base(Path(directory))
    return str(resolve_model(base)) if base is not None else None


def adapter_rank(directory: str) -> int:
    """The rank of a peft adapter."""
    settings = json.loads((Path(directory) / "adapter_config.json").read_text(encoding="utf-8"))
    return int(max(settings["r"], *settings.get("rank_pattern", {}).values(), 0))


def check_checkpoint(directory: str) -> None:
    """Raises `UserError` when there is no model in `directory`, or its tokenizer is not the one it was trained with."""
    from spftsql.training.artefact import REMOVED, check_tokenizer

    folder = Path(directory)
    if (folder / REMOVED).exists():
        raise UserError(f"{directory} has lost its weights to retention=needed: run its recipe with retention=all")
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise UserError(f"{directory} is not a model directory: it has neither config.json nor adapter_config.json")
    check_tokenizer(folder)


class Checkpoint:
    """A model directory, with full weights or a peft adapter over `base`."""

    def __init__(self, directory: str, max_length: int) -> None:
        """Reads tokenizer and limits. `max_length` (tokens) is cut to what the model has positions for.

        Raises `UserError` when the directory cannot be used.
        """
        from transformers import AutoConfig, GenerationConfig

        from spftsql.training.artefact import load_tokenizer

        check_checkpoint(directory)
        base = adapter_base(directory)
        self.directory, self.base = directory, base or directory
        try:
            own = base is None or (Path(directory) / "tokenizer_config.json").is_file()
            self._tokenizer = load_tokenizer(directory if own else self.base)
            settings = AutoConfig.from_pretrained(self.base).get_text_config()
        except (OSError, ValueError) as error:
            raise UserError(f"{directory} cannot be loaded: {str(error).splitlines()[0]}") from None
        self.max_length = min(max_length, getattr(settings, "max_position_embeddings", max_length))
        self.vocabulary = int(settings.vocab_size)
        stops = {self._tokenizer.eos_token_id}
        if (Path(self.base) / "generation_config.json").is_file():
            declared = GenerationConfig.from_pretrained(self.base).eos_token_id
            stops |= set(declared) if isinstance(declared, list) else {declared}
        self.stops = frozenset(token for token in stops if token is not None)

    def encode(self, request: GenerationRequest) -> Prompt:
        """The request's prompt as tokens, without special tokens added: the prompt builder has written them.

        Raises `Unservable` when the request cannot be served: empty, too long, or with a setting out of range.
        """
        if not request.prompt:
            raise Unservable("the prompt is empty")
        if request.n < 1 or request.max_tokens < 1 or request.temperature < 0 or not 0 <= request.seed < 2**62:
            raise Unservable("n and max_tokens must be at least 1, temperature and seed at least 0")
        tokens: list[int] = self._tokenizer(request.prompt, add_special_tokens=False)["input_ids"]
        if not tokens:
            raise Unservable("the prompt is empty")
        room = min(request.max_tokens, self.max_length - len(tokens))
        if room < 1:
            raise Unservable(
                f"the prompt has {len(tokens)} tokens, and the model takes {self.max_length} with the answer"
            )
        if max(tokens) >= self.vocabulary:
            raise Unservable(f"the prompt has token {max(tokens)}, and the model knows {self.vocabulary}")
        return Prompt(request, tokens, room)

    def sample(self, request: GenerationRequest, index: int, completion: Completion) -> Sample:
        """A completion as the row that leaves the engine."""
        text: Any = self._tokenizer.decode(
            completion.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return Sample(
            id=request.id,
            db_id=request.db_id,
            model=request.model,
            index=index,
            text=text.lstrip(),
            tokens=len(completion.tokens),
            finish_reason="stop" if completion.stopped else "length",
        )


def error_row(request: GenerationRequest, reason: str) -> Sample:
    """The one row of a request that cannot be served."""
    return Sample(
        id=request.id,
        db_id=request.db_id,
        model=request.model,
        index=0,
        text="",
        tokens=0,
        finish_reason="error",
        error=reason,
    )

"""What goes in and out of the endpoint's routes. An unknown field is refused: nothing is ignored silently."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_CANDIDATES = 16
_TEXT = 100_000  # characters; the model's own limit, in tokens, is checked by its engine

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=_TEXT)]


class Strict(BaseModel):
    """Base of the requests: no unknown fields."""

    model_config = ConfigDict(extra="forbid")


class SqlRequest(Strict):
    """`POST /v1/sql`. `n` candidates are sampled and vote with their results; 1 is the greedy answer."""

    database: str
    question: Text
    evidence: str = Field("", max_length=_TEXT)
    n: int = Field(1, ge=1, le=MAX_CANDIDATES)
    max_rows: int | None = Field(None, ge=1)
    stream: bool = False
    abstain_below: float | None = Field(None, ge=0, le=1)


class VerdictOut(BaseModel):
    """What execution says about the statement."""

    status: str
    reason: str
    elapsed_ms: float


class CandidateOut(BaseModel):
    """One result that candidates agreed on: the SQL that stands for it, and how many candidates gave it."""

    sql: str
    votes: int
    status: str


class Usage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Timings(BaseModel):
    """Wall-clock milliseconds of a request and of its two parts."""

    generate_ms: float
    execute_ms: float
    total_ms: float


class SqlResponse(BaseModel):
    """The answer of `POST /v1/sql`: SQL, what execution says about it, and its rows."""

    sql: str
    verdict: VerdictOut
    columns: list[str]
    rows: list[list[Any]]
    truncated: bool
    candidates: list[CandidateOut]
    model: str
    usage: Usage
    timings: Timings


class TextPart(Strict):
    """A part of a message's content; only text is understood."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        """The content as one string."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(Strict):
    """`POST /v1/chat/completions`, the part of OpenAI's shape that is served."""

    model: str
    messages: list[Message] = Field(min_length=1)
    n: int = Field(1, ge=1, le=MAX_CANDIDATES)
    temperature: float | None = Field(None, ge=0, le=2)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    seed: int | None = None
    stream: bool | None = None
    user: str | None = None


class ChatChoice(BaseModel):
    """One answer of a chat completion."""

    index: int
    message: dict[str, str]
    finish_reason: str
    logprobs: None = None


class ChatResponse(BaseModel):
    """The answer of `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage

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
    content: Annotated[str, Field(max_length=_TEXT)] | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        """The content as one string."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Strict):
    """OpenAI's `stream_options`."""

    include_usage: bool = False


class ResponseFormat(Strict):
    """OpenAI's `response_format`; only plain text is served."""

    type: Literal["text"]


class CompletionBase(Strict):
    """What chat and plain completions have in common of OpenAI's shape. Neutral values of other fields are taken."""

    model: str
    n: int | None = Field(1, ge=1, le=MAX_CANDIDATES)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = Field(None, max_length=_TEXT)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    logit_bias: dict[str, float] | None = Field(None, max_length=0)
    ignore_eos: bool = False  # vLLM's own

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, without empty ones."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(stop for stop in given if stop)


class ChatRequest(CompletionBase):
    """`POST /v1/chat/completions`, the part of OpenAI's shape that is served."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    response_format: ResponseFormat | None = None
    logprobs: Literal[False] | None = None
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None


class CompletionRequest(CompletionBase):
    """`POST /v1/completions`: `NAME` continues the prompt, `NAME@DATABASE` takes it as the question."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    logprobs: None = None
    suffix: None = None

    @property
    def text(self) -> str:
        """The prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


class QueryRequest(Strict):
    """`POST /v1/query`: a statement of the caller's own, executed in the sandbox."""

    database: str
    sql: Text
    max_rows: int | None = Field(None, ge=1)


class QueryResponse(BaseModel):
    """What execution says about a statement, and its rows."""

    sql: str
    verdict: VerdictOut
    columns: list[str]
    rows: list[list[Any]]
    truncated: bool


class PlanRequest(Strict):
    """`POST /v1/plan`: a statement whose execution is to be explained, not done."""

    database: str
    sql: Text


class PlanStep(BaseModel):
    """One step of a query plan: it takes the rows of its `children`. `rows` is the engine's estimate, if it has one."""

    name: str
    detail: str
    rows: float | None
    children: list[PlanStep]


class PlanResponse(BaseModel):
    """How the database would execute a statement, and whether it may be executed at all."""

    sql: str
    verdict: VerdictOut
    plan: list[PlanStep]


class FeedbackRequest(Strict):
    """`POST /v1/feedback`: what a person thinks of the SQL of an answer; `corrected` is what it should have been."""

    database: str
    question: Text
    sql: Text
    rating: Literal["up", "down"]
    corrected: Text | None = None
    evidence: str = Field("", max_length=_TEXT)
    comment: str = Field("", max_length=_TEXT)


class ColumnOut(BaseModel):
    """A column as the database declares it; `samples` are a few of its values."""

    name: str
    type: str
    primary_key: bool
    comment: str
    samples: list[str]


class TableOut(BaseModel):
    """A table with its number of rows."""

    name: str
    rows: int
    comment: str
    columns: list[ColumnOut]


class ForeignKeyOut(BaseModel):
    """`table.column` refers to `target.target_column`."""

    table: str
    column: str
    target: str
    target_column: str


class SchemaResponse(BaseModel):
    """`GET /v1/databases/{name}`: the schema, as far as the key may know it."""

    id: str
    object: Literal["schema"]
    dialect: str
    tables: list[TableOut]
    foreign_keys: list[ForeignKeyOut]


class CallerResponse(BaseModel):
    """`GET /v1/me`: who asks, what the key may do, and what this endpoint offers."""

    name: str
    scopes: list[str]
    model: str
    keeps_feedback: bool
    max_rows: int
    max_candidates: int


class FeedbackResponse(BaseModel):
    """The id under which it was stored, and whether it is a labelled pair for the next run."""

    id: str
    labelled: bool

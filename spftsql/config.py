"""The configuration of a run: one frozen tree, whose parts are the sections of a recipe (see `recipes`)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from spftsql.records import Filter, Mode, content_hash
from spftsql.sandbox.location import without_password


class Section(BaseModel):
    """Base of every part of the tree: frozen, and strict about unknown keys.

    The validators of a part are built when it is first used: most commands use few.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)


class DatabaseConfig(Section):
    """One database: `url` is a file or `sqlite:///…`; `foreign_keys` adds keys that it does not declare.

    `replicas` are further places of the same content on the same engine: files on other mounts, or other servers. SQL
    is executed on all of them in turn, and on the others while one fails. `descriptions` is a folder of BIRD's CSV
    files or a file like Spider's `tables.json`, and says in words what tables and columns hold.
    """

    name: str
    url: str
    replicas: tuple[str, ...] = ()
    foreign_keys: tuple[str, ...] = ()  # "table.column = table.column"
    descriptions: Path | None = None


class DataConfig(Section):
    """The labelled questions, and the databases that they are about; without labels, the databases alone.

    `label_share` is the share of the training labels that the method may see; 0: none, and the others only test.
    `gate_share` of the labels is held out for the gate where the benchmark has no set of its own for it. `feedback` is
    a folder of what people said of an endpoint's answers (`serve.feedback`): its labels are trained on as well.
    """

    benchmark: Literal["none", "demo", "geoquery", "spider", "bird", "jsonl"] = "none"
    root: Path | None = None
    split: Literal["question", "query"] = "question"  # GeoQuery's two splits
    label_share: float = Field(1.0, ge=0, le=1)
    gate_share: float = Field(0.1, ge=0, lt=1)
    canonical_sql: bool = False  # rewrite labels into the form in which synthesis writes SQL
    databases: tuple[DatabaseConfig, ...] = ()
    feedback: Path | None = None

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> DataConfig:
        if self.benchmark == "none" and not self.databases:
            raise ValueError("set data.benchmark, or data.databases to learn without labels")
        return self

    @model_validator(mode="after")
    def _no_password(self) -> DataConfig:
        for database in self.databases:
            if any(without_password(url) != url for url in (database.url, *database.replicas)):
                raise ValueError(
                    f"database {database.name}: leave the password out of the recipe, which is copied into runs and to "
                    "clusters; where SQL is executed it is read from PGPASSWORD or ~/.pgpass"
                )
        return self


class QuestionExample(Section):
    """A statement and the question that it answers, as the SQL-to-text model is shown how to phrase one."""

    sql: str
    question: str


_QUESTION_EXAMPLES = tuple(
    QuestionExample(sql=sql, question=question)
    for sql, question in (
        ("SELECT name FROM employee WHERE salary > 50000", "Which employees earn more than 50000?"),
        (
            "SELECT department, COUNT(*) FROM employee GROUP BY department HAVING COUNT(*) >= 20",
            "Which departments have at least 20 employees, and how many does each have?",
        ),
        (
            "SELECT book.title FROM book JOIN author ON book.author_id = author.id WHERE author.name = 'Ann Lee' "
            "ORDER BY book.year DESC LIMIT 1",
            "What is the title of the newest book by Ann Lee?",
        ),
        (
            "SELECT name FROM customer WHERE id NOT IN (SELECT customer_id FROM invoice)",
            "Which customers never got an invoice?",
        ),
        ("SELECT AVG(price) FROM product WHERE category = 'toys'", "What do toys cost on average?"),
    )
)


class PromptConfig(Section):
    """How a question becomes a prompt. `spaced` SQL puts blanks around every token (for small scratch tokenizers).

    With `linking` a schema beyond `max_schema_tokens` is cut to the part that the question is about, and values of the
    database that the question mentions are said in the prompt; without it, a large schema loses detail instead.
    `question_examples` are shown to the model that phrases questions, as earlier turns of the conversation; write them
    in the language of your users.
    """

    schema_text: Literal["full", "none"] = "full"
    max_schema_tokens: int = Field(1500, gt=0)
    linking: bool = True
    sql_style: Literal["plain", "spaced"] = "plain"
    placeholders: bool = False  # values in the question as typed names, put back after decoding (small scratch models)
    question_examples: tuple[QuestionExample, ...] = _QUESTION_EXAMPLES  # `[]`: none


class ScratchConfig(Section):
    """A Qwen2-architecture model built from random weights, with a BPE tokenizer trained on the run's own text."""

    hidden_size: int = Field(128, gt=0)
    layers: int = Field(2, gt=0)
    heads: int = Field(4, gt=0)
    intermediate_size: int = Field(384, gt=0)
    vocabulary: int = Field(2000, gt=300)
    dropout: float = Field(0.1, ge=0, lt=1)


class ModelConfig(Section):
    """The base model: a directory (or Hub name) to load, or `scratch`."""

    path: str | None = None
    scratch: ScratchConfig | None = None
    chat_template: Path | None = None  # a Jinja file, for a model whose tokenizer has none
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    max_length: int = Field(4096, gt=0)  # tokens, prompt and completion together

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if (self.path is None) == (self.scratch is None):
            raise ValueError("set exactly one of model.path and model.scratch")
        return self


class GenerationConfig(Section):
    """The engines that write questions and SQL. Resources are per actor; `resources` are the cluster's own ones.

    `node_cache` is where every machine keeps copies of model directories, for its engines, its trainers, the endpoint
    and later runs. `auto`: the cache folder (`SPFTSQL_CACHE`), with copies only of models that are on a mount of
    another machine. A directory: copies of all models. `null`: none. A model whose files change gets a new copy; the
    copy that was not used for longest goes first, and what does not fit is read from where it is.
    """

    engine: Literal["vllm", "transformers"] = "vllm"
    actors: int = Field(1, gt=0)
    cpus: float = Field(1, ge=0)
    gpus: float = Field(0, ge=0)
    resources: dict[str, float] = {}  # such as {generation: 1}, on nodes that declare them
    tensor_parallel_size: int = Field(1, gt=0)
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    batch_size: int = Field(256, gt=0)
    max_tokens: int = Field(256, gt=0)
    node_cache: Literal["auto"] | Path | None = "auto"
    copies_mb: int = Field(100_000, gt=0)  # of models, in the node cache


class SandboxConfig(Section):
    """Limits of one statement in the sandbox. Beyond `hard_seconds` its process is killed."""

    soft_seconds: float = Field(5.0, gt=0)
    hard_seconds: float = Field(10.0, gt=0)
    max_rows: int = Field(10_000, gt=0)
    max_bytes: int = Field(16_000_000, gt=0)
    memory_mb: int = Field(512, gt=63)
    double_quoted_strings: bool = False  # unknown "name" is a string, as the benchmarks' golds assume

    @model_validator(mode="after")
    def _ordered(self) -> SandboxConfig:
        if self.hard_seconds < self.soft_seconds:
            raise ValueError("sandbox.hard_seconds must not be below sandbox.soft_seconds")
        return self


class VerificationConfig(Section):
    """The pool of verifier workers (a Ray Serve deployment); `cpus` is per worker.

    `batch_size` is how many statements travel together at most. A worker answers after two seconds with what it has.
    `node_cache` is where every machine keeps results of statements, and copies of database files by their content, for
    its workers and for later runs. `auto`: the cache folder (`SPFTSQL_CACHE`), with copies only of files that are on a
    mount of another machine, because on a local disk a copy saves nothing. A directory: copies of all files, which then
    cannot change under a run. `null`: nothing is kept on disk.
    """

    workers: int = Field(2, gt=0)
    cpus: float = Field(0.25, ge=0)
    resources: dict[str, float] = {}  # per worker, beside its CPUs, such as {verification: 1}
    batch_size: int = Field(512, gt=0)
    node_cache: Literal["auto"] | Path | None = "auto"
    copies_mb: int = Field(20_000, gt=0)  # of databases, in the node cache
    results_mb: int = Field(1_000, gt=0)  # in the node cache
    memory_mb: int = Field(64, gt=0)  # results that a worker has in memory
    policy: Literal["spider", "bird", "strict"] = "strict"


class LoraConfig(Section):
    """Low-rank adapters instead of full fine-tuning.

    `keep`: every model of the run is written as its adapter (small files over one base), or `merged` into a complete
    model. `bits: 4` holds the base in 4-bit NF4 (QLoRA; GPU only, and not yet seen working).
    """

    rank: int = Field(32, gt=0)
    alpha: int = Field(64, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    keep: Literal["adapter", "merged"] = "adapter"
    bits: Literal[4] | None = None


class TrainingConfig(Section):
    """What all trainings of a run share: workers, DeepSpeed, precision, checkpoints.

    `workers` may be `[fewest, most]`: a training then goes on with what the cluster has of them. With `validate_steps`
    a model is put to the selection questions every so many steps; the best is kept, and after `patience` of them in a
    row that were no better the training ends.
    """

    workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 1
    cpus: float = Field(1, ge=0)
    gpus: float = Field(0, ge=0)
    resources: dict[str, float] = {}  # per worker, beside its CPUs and GPUs, such as {training: 1}
    threads: int = Field(1, gt=0)  # CPU threads per worker
    zero_stage: Literal[0, 1, 2, 3] = 2
    offload: bool = False
    lora: LoraConfig | None = None
    micro_batch: int = Field(16, gt=0)  # rows per worker and forward pass, at most
    micro_tokens: int = Field(16384, gt=0)  # tokens per worker and forward pass, at most (one row may have more)
    sharing: Literal["tree", "none"] = "tree"  # compute what rows of a pass have in common once, or for each of them
    questions_per_schema: int = Field(8, gt=0)  # rows of one schema that meet in a batch, at most
    gradient_checkpointing: bool = False
    prompt_loss: float = Field(0.0, ge=0)  # weight of the prompt's own tokens in `sft`
    checkpoint_steps: int = Field(200, gt=0)
    validate_steps: int | None = Field(None, gt=0)
    patience: int = Field(3, gt=0)
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()  # beside metrics.jsonl
    max_failures: int = Field(3, ge=0)
    collective_timeout_s: int = Field(300, gt=0)

    @model_validator(mode="after")
    def _checked(self) -> TrainingConfig:
        if self.min_workers > self.max_workers:
            raise ValueError(f"training.workers: {list(self.worker_range)} must be [fewest, most]")
        if self.lora and self.lora.bits and not self.gpus:
            raise ValueError("training.lora.bits needs GPUs: set training.gpus, or leave it out")
        if self.lora and self.lora.bits and self.zero_stage == 3:
            raise ValueError("training.lora.bits does not go with training.zero_stage 3: use 2")
        return self

    def result_settings(self) -> dict[str, object]:
        """The settings that decide what a training gives, by name.

        How many workers there are, how they share the work, and how often something is kept changes no result (beyond
        the rounding of sums), and is not among them.
        """
        named = {"questions_per_schema", "prompt_loss", "lora"}
        if self.validate_steps is not None:
            named |= {"validate_steps", "patience"}
        return self.model_dump(mode="json", include=named)

    @property
    def worker_range(self) -> tuple[int, int]:
        """The fewest and the most workers."""
        return self.workers if isinstance(self.workers, tuple) else (self.workers, self.workers)

    @property
    def min_workers(self) -> int:
        """The fewest workers."""
        return self.worker_range[0]

    @property
    def max_workers(self) -> int:
        """The most workers."""
        return self.worker_range[1]


class Optimization(Section):
    """One training: its length (`steps`, else `epochs`), its batch (rows over all workers) and its step size."""

    steps: int | None = Field(None, gt=0)
    epochs: float = Field(2.0, gt=0)
    batch_size: int = Field(32, gt=0)
    learning_rate: float = Field(1e-5, gt=0)
    warmup: float = Field(0.05, ge=0, lt=1)  # share of the steps
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)

    def total_steps(self, rows: int) -> int:
        """Steps over `rows` training rows."""
        return self.steps or max(1, round(self.epochs * rows / self.batch_size))


class SynthesisConfig(Section):
    """SQL from templates, and the questions for it.

    With `hide_values` the question model reads and writes placeholders for values (small scratch models); without, it
    is told what to say. A question that does not say every value is no candidate. `filter` says what the round trip is
    for: each candidate goes back through the Text-to-SQL model `votes` times, and `agreement` is the share of votes
    that confirms a question (`round_trip`) or, on one other result, refutes it (`confident_disagreement`); `ranked`
    takes the candidate with most votes. `leaks` are pairs that repeat a question of the gate or test set: the same
    SQL, literals and all, where it has a condition or a limit, or the same but for literals and words alike for
    `leak_overlap` of their triples. `templates` is a file of `spftsql templates extract`, whose templates are drawn by
    their counts beside those of the labels.
    """

    column_substitution: float = Field(0.3, ge=0, le=1)  # probability that a template's columns are drawn anew
    templates: Path | None = None  # a file of further templates
    library: float = Field(0.0, ge=0, le=1)  # share of statements from the built-in templates; all without labels
    composition: float = Field(0.0, ge=0, le=1)  # share of statements from templates derived from all of these
    recombination: float = Field(0.0, ge=0, le=1)  # share of pairs made of two labels each, in the labels' words
    per_structure: int = Field(50, ge=0, le=255)  # statements of a template over the same columns; 0: any number
    databases: Literal["all", "labelled"] = "all"  # which ones SQL is written for
    candidates: int = Field(3, gt=0)  # questions per statement
    temperature: float = Field(0.7, ge=0)
    hide_values: bool = False
    filter: Filter = "none"
    votes: int = Field(4, gt=0)
    vote_temperature: float = Field(0.7, ge=0)
    agreement: float = Field(0.5, gt=0, le=1)
    leaks: Literal["fail", "drop"] = "fail"
    leak_overlap: float = Field(0.8, gt=0, le=1)


class VbiConfig(Section):
    """Verification-based iterative fine-tuning (SPFT-SQL, section 3.1).

    A round is trained on the labels and on the pairs of that round (`pairs: newest`) or of all rounds so far.
    """

    rounds: int = Field(1, ge=0)
    train_pairs: int = Field(3000, gt=0)  # per round
    selection_pairs: int = Field(300, gt=0)  # synthetic validation; templates apart from the training ones
    play_pairs: int = Field(1000, ge=0)  # synthetic questions for self-play
    share: float = Field(0.3, gt=0, le=1)  # share of synthetic rows in a training batch
    pairs: Literal["newest", "all"] = "newest"
    start: Literal["base", "previous"] = "base"
    control: bool = True  # train the labels alone for as many steps, to compare with in the table
    optimization: Optimization = Field(default_factory=Optimization)


class SelfPlayConfig(Section):
    """Error-driven self-play (SPFT-SQL, section 3.2). `baselines` are further modes, trained for the table only.

    `opponent` says who writes y′ in the spft modes: the `weakest` candidate, the `previous` one (the main model
    itself), the first one (`base`), or a `pool` of as many candidates as `pool` says, from the weakest to the
    strongest. The frozen `reference` is the opponent, or the main model at the start of the iteration; with a pool it
    is the latter. A synthetic gold is left out when `quarantine` candidates at least, and most of all, agree on another
    result (`null`: never).

    `near_misses` are further y′ of every mode but `sft`: up to as many statements per question that are one edit away
    from the gold, and that execution shows to be wrong. `questions` says which of the play set an iteration plays:
    `all`, or one of as many `parts` as there are iterations.
    """

    mode: Mode = "spft-a"
    baselines: tuple[Mode, ...] = ()
    iterations: int = Field(1, ge=0)
    opponent: Literal["weakest", "previous", "base", "pool"] = "weakest"
    pool: int = Field(3, gt=1)
    reference: Literal["opponent", "main"] = "opponent"
    samples: int = Field(1, gt=0)  # of each opponent, per question
    near_misses: int = Field(0, ge=0)  # per question
    questions: Literal["all", "parts"] = "all"
    temperature: float = Field(1.0, ge=0)
    lambda_: float = Field(0.1, gt=0, alias="lambda")
    nll_weight: float = Field(0.0, ge=0)
    loss: Literal["logistic", "hinge"] = "logistic"
    normalise: Literal["sum", "mean"] = "sum"  # log-probabilities over the tokens of an answer
    weigh: Literal["pair", "question"] = "pair"  # what counts alike: every sample, or all of a question together
    replay: float = Field(0.5, ge=0)  # labelled replay rows per pair
    quarantine: int | None = Field(2, gt=1)
    stop_on_collapse: bool = True  # when an iteration makes the model worse on the selection set, `mode` plays no more
    optimization: Optimization = Field(default_factory=lambda: Optimization(learning_rate=1e-6, epochs=1))

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class GateConfig(Section):
    """The paired test that promotes a candidate: exact McNemar on the gate set.

    With `folds` the labels decide as well: the whole loop runs once more for each fold of them, without these labels,
    and its candidates answer them (`data.gate_share: 0` then leaves all to train on). For few labels.
    """

    enabled: bool = True
    alpha: float = Field(0.05, gt=0, lt=1)
    folds: int | None = Field(None, gt=1)


class ServeConfig(Section):
    """The endpoint. Without a key in `SPFTSQL_API_KEY` and without `keys` it binds to loopback only.

    `keys` is the file that `spftsql keys` writes. `hosts` are the names by which clients reach the endpoint (beside
    the address it listens on); `origins` the web sites that may call it from a browser. The model has `replicas`
    replicas, or up to `max_replicas` as requests come: one for each `requests_per_replica` in progress. One that was
    not needed for `idle_seconds` goes again.
    """

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, lt=65536)
    max_rows: int = Field(100, gt=0)
    keys: Path | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    max_body_kb: int = Field(1024, gt=0)
    request_seconds: float = Field(120.0, gt=0)
    repair: bool = True  # one more attempt where the statement fails, with the database's message
    vote_temperature: float = Field(0.7, gt=0, le=2)
    feedback: Path | None = None  # folder; default: none is kept
    replicas: int = Field(1, gt=0)
    max_replicas: int | None = Field(None, gt=0)
    requests_per_replica: int = Field(16, gt=0)
    idle_seconds: float = Field(600.0, gt=0)
    ingress_replicas: int = Field(1, gt=0)

    @model_validator(mode="after")
    def _scaled_up(self) -> ServeConfig:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError("serve.max_replicas must not be below serve.replicas")
        return self


class ClusterConfig(Section):
    """Where Ray runs. Without `address` a local session is started; `cpus` are the logical CPUs that it declares.

    `gpus` and `gpu_memory_gb` (GiB of each) say what a recipe is written for; `--dry-run` holds its needs against them.
    """

    address: str | None = None
    cpus: int = Field(8, gt=0)
    gpus: int | None = Field(None, ge=0)
    gpu_memory_gb: float | None = Field(None, gt=0)
    dashboard: bool = True


class Config(Section):
    """The whole tree of one run.

    `retention`: `all` keeps the weights of every model. `needed` removes those that neither serving nor the gate's
    open questions need, as soon as nothing is left to do with them; a change of settings that needs them trains them
    again.
    """

    name: str
    seed: int = 0
    run_dir: Path = Path("runs")
    storage: str | None = None  # s3://…, gs://…: finished stages are kept there too, and fetched on another machine
    execution: Literal["ray", "local"] = "ray"
    retention: Literal["all", "needed"] = "all"
    data: DataConfig
    model: ModelConfig
    prompt: PromptConfig = Field(default_factory=PromptConfig)
    generation: GenerationConfig = Field(default_factory=GenerationConfig)
    sandbox: SandboxConfig = Field(default_factory=SandboxConfig)
    verification: VerificationConfig = Field(default_factory=VerificationConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    sft: Optimization = Field(default_factory=Optimization)
    question_model: Optimization = Field(default_factory=Optimization)
    synthesis: SynthesisConfig = Field(default_factory=SynthesisConfig)
    vbi: VbiConfig = Field(default_factory=VbiConfig)
    selfplay: SelfPlayConfig = Field(default_factory=SelfPlayConfig)
    gate: GateConfig = Field(default_factory=GateConfig)
    serve: ServeConfig = Field(default_factory=ServeConfig)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)

    def key(self, *sections: str) -> str:
        """A hash over the named sections, for the stages whose result depends on them and on nothing else."""
        return content_hash({name: self.model_dump(mode="json", by_alias=True)[name] for name in sections})


def fold_config(config: Config) -> Config:
    """The configuration of the loops that folds of the labels ask (`gate.folds`): no baselines, no control."""
    update = {
        "vbi": config.vbi.model_copy(update={"control": False}),
        "selfplay": config.selfplay.model_copy(update={"baselines": ()}),
    }
    return config.model_copy(update=update)

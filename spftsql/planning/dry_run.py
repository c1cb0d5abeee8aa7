"""`spftsql run RECIPE --dry-run`: everything that can be known before anything starts, with the arithmetic shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from spftsql.config import Config, fold_config
from spftsql.errors import UserError
from spftsql.planning.shapes import (
    ARCHITECTURES,
    GIB,
    HEADROOM,
    KNOWN,
    Shape,
    generation_memory,
    gib,
    kept_bytes,
    scratch_shape,
    shape_of_directory,
    training_memory,
    value_bytes,
)

_CACHED_SEQUENCES = 8  # fewer at a time, and generation crawls
_RESUME_CHECKPOINTS = 2  # the last, and the one being written
_CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json")


@dataclass
class DryRun:
    """What a run would need (`lines`, for reading) and what stands in its way (`problems`, one line each)."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def dry_run(config: Config) -> DryRun:
    """Checks files, model, memory and resources of a resolved recipe. Starts nothing and imports no Ray."""
    report = DryRun()
    report.lines.append(f"run {config.name}: {config.data.benchmark}, results in {config.run_dir / config.name}")
    _check_data(config, report)
    shape = _check_model(config, report)
    if shape is not None:
        _check_shape(config, shape, report)
        _check_training(config, shape, report)
        _check_generation(config, shape, report)
        _count_disk(config, shape, report)
    _check_resources(config, report)
    return report


def models_trained(config: Config) -> list[str]:
    """The names of the models that the run will train, each of which is kept; those of folds say so at their end."""
    folds = config.gate.folds if config.gate.enabled and _has_labels(config) else None
    names = _trained_in_one_loop(config)
    for number in range(1, (folds or 0) + 1):
        names += [f"{name}-fold-{number}" for name in _trained_in_one_loop(fold_config(config))]
    return names


def _trained_in_one_loop(config: Config) -> list[str]:
    vbi, play, labels = config.vbi, config.selfplay, _has_labels(config)
    names = ["sft", "question-0"] if labels else []
    names += [f"question-{n}" for n in range(1, vbi.rounds)] + [f"vbi-{n}" for n in range(1, vbi.rounds + 1)]
    if not vbi.rounds:
        return names  # self-play needs the synthetic questions
    names += ["control"] if labels and vbi.control else []
    modes = dict.fromkeys((play.mode, *play.baselines))
    return names + [f"{mode}-{n}" for mode in modes for n in range(1, play.iterations + 1) if vbi.play_pairs]


def _has_labels(config: Config) -> bool:
    data = config.data
    return data.feedback is not None or (data.benchmark != "none" and data.label_share > 0)


def _check_data(config: Config, report: DryRun) -> None:
    data = config.data
    if data.benchmark == "demo":
        report.lines.append("data: the embedded demo database, made by the run")
        return
    if data.benchmark == "none" or not data.label_share:
        _check_without_labels(config, report)
    if data.benchmark == "none":
        return
    if data.root is None:
        report.problems.append(f"data.root is not set: --set data.root=FOLDER of {data.benchmark}")
        return
    from spftsql.evaluation.data_check import check_data

    try:
        findings = check_data(data.root, data.benchmark, {database.name: database for database in data.databases})
    except UserError as error:
        report.problems.append(f"data.root: {error}")
        return
    for finding in findings:
        report.lines.append(f"data: {finding.item}: {finding.detail}")
        if finding.state == "missing":
            advice = f" ({finding.advice})" if finding.advice else ""
            report.problems.append(f"data: {finding.item}: {finding.detail}{advice}")


def _check_without_labels(config: Config, report: DryRun) -> None:
    from spftsql.databases.catalogue import open_catalogue

    if config.model.path is None:
        report.problems.append("without labels a model from scratch has no words for questions: set model.path")
    for database in config.data.databases:
        try:
            (found,) = open_catalogue([database]).values()
        except UserError as error:
            report.problems.append(f"data: {error}")
            continue
        rows = sum(table.rows for table in found.schema.tables)
        report.lines.append(f"data: database {database.name}: {len(found.schema.tables)} tables, {rows:,} rows")
    report.lines.append("data: no labels: templates from the library, questions by the base model")


def _check_model(config: Config, report: DryRun) -> Shape | None:
    model, templates = config.model, config.synthesis.templates
    if templates is not None and not templates.is_file():
        report.problems.append(f"synthesis.templates: {templates} does not exist")
    if model.chat_template is not None and not model.chat_template.is_file():
        report.problems.append(f"model.chat_template: {model.chat_template} does not exist")
    if model.scratch is not None:
        shape = scratch_shape(model.scratch, model.max_length)
        report.lines.append(f"model: from scratch, {_describe(shape)}")
        return shape
    assert model.path is not None  # config: exactly one of the two is set
    folder = Path(model.path)
    if folder.is_dir():
        try:
            shape = shape_of_directory(folder)
        except UserError as error:
            report.problems.append(f"model.path: {error}")
            return None
        report.lines.append(f"model: {folder}, {_describe(shape)}")
        if not any(folder.glob("*.safetensors")):
            report.problems.append(f"model.path: {folder} has no weights (*.safetensors)")
        if model.chat_template is None and not _has_chat_template(folder):
            report.problems.append(f"model {folder} has no chat template: set model.chat_template to a Jinja file")
        return shape
    if model.path in KNOWN:
        shape = KNOWN[model.path]
        report.lines.append(f"model: {model.path}, {_describe(shape)}; not on this machine, taken from the Hub by name")
        return shape
    if folder.is_absolute() or model.path.startswith(".") or model.path.count("/") != 1:
        report.problems.append(f"model.path: the directory {model.path} does not exist")
    else:
        report.problems.append(f"model.path: {model.path} is not on this machine and not a model whose size is known")
    return None


def _check_shape(config: Config, shape: Shape, report: DryRun) -> None:
    if shape.architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        report.problems.append(f"architecture {shape.architecture} is not one of those that are known to work: {known}")
    if config.model.max_length > shape.context:
        report.problems.append(
            f"model.max_length {config.model.max_length} is beyond the model's {shape.context} tokens"
        )
    if config.generation.max_tokens >= config.model.max_length:
        report.problems.append("generation.max_tokens leaves no room for a prompt in model.max_length")
    tensor_parallel = config.generation.tensor_parallel_size
    if shape.heads % tensor_parallel:
        report.problems.append(
            f"generation.tensor_parallel_size {tensor_parallel} does not divide the model's {shape.heads} heads"
        )


def _check_training(config: Config, shape: Shape, report: DryRun) -> None:
    training = config.training
    tokens, scored = _largest_pass(config)
    memory = training_memory(
        shape,
        workers=training.min_workers,
        zero_stage=training.zero_stage,
        offload=training.offload,
        lora=training.lora,
        value_bytes=value_bytes(config),
        tokens=tokens,
        scored=scored,
        device="cuda" if training.gpus else "cpu",
        checkpointing=training.gradient_checkpointing,
    )
    kind = f"LoRA of rank {training.lora.rank}" if training.lora else "all weights"
    if training.lora and training.lora.bits:
        kind += f" over {training.lora.bits}-bit weights (not yet seen working; the memory below is that of 16 bits)"
    each = "GPU" if training.gpus else "worker"
    report.lines += [
        f"training: {kind}, ZeRO-{training.zero_stage} over {_count(*training.worker_range)} {each}s"
        + (", optimizer in host memory" if training.offload else ""),
        f"  per {each}: weights {gib(memory.weights)} + gradients {gib(memory.gradients)}"
        f" + optimizer {gib(memory.optimizer)} + activations {gib(memory.activations)}"
        f" (passes of up to {tokens:,} tokens) = {gib(memory.total)}",
    ]
    if memory.host:
        report.lines.append(f"  host memory for the optimizer: {gib(memory.host)} over all workers")
    gpu = _gpu_bytes(config)
    if training.gpus and gpu:
        usable = gpu * (1 - HEADROOM)
        fits = memory.total <= usable
        report.lines.append(f"  {'fits' if fits else 'does not fit'}: {gib(usable)} usable of {gib(gpu)}")
        if not fits:
            report.problems.append(
                f"training needs {gib(memory.total)} per GPU and {gib(usable)} are usable: use training.lora, a "
                "higher zero_stage, more workers, a smaller micro_tokens or micro_batch, or gradient_checkpointing"
            )


def _largest_pass(config: Config) -> tuple[int, int]:
    """How many tokens a forward pass of a training computes at most, and at how many of them it computes logits.

    A pair is its prompt twice, or once with sharing, and two answers. One row may be longer than `micro_tokens`.
    """
    training, length, answer = config.training, config.model.max_length, config.generation.max_tokens
    modes = {config.selfplay.mode, *config.selfplay.baselines}
    pairs = config.selfplay.iterations > 0 and modes != {"sft"}
    row, answers = length, answer
    if pairs:
        row, answers = length + (answer if training.sharing == "tree" else length), 2 * answer
    tokens = min(training.micro_batch * row, max(training.micro_tokens, row))
    return tokens, tokens if training.prompt_loss else min(training.micro_batch * answers, tokens)


def _check_generation(config: Config, shape: Shape, report: DryRun) -> None:
    generation = config.generation
    tensor_parallel = generation.tensor_parallel_size
    if not generation.gpus:
        weights = shape.parameters * value_bytes(config)
        report.lines.append(f"generation: {generation.actors} engines on CPU, weights {gib(weights)} each")
        if tensor_parallel > 1:
            report.problems.append("generation.tensor_parallel_size needs generation.gpus")
        return
    report.lines.append(f"generation: {generation.actors} engines, each over {tensor_parallel} GPUs")
    if generation.gpus != tensor_parallel:
        report.problems.append(
            f"generation.gpus is {generation.gpus:g} per engine and its tensor_parallel_size {tensor_parallel}: "
            "set both alike"
        )
    gpu = _gpu_bytes(config)
    if not gpu:
        return
    length = config.model.max_length
    memory = generation_memory(
        shape,
        gpu_bytes=gpu,
        utilization=generation.gpu_memory_utilization,
        tensor_parallel=tensor_parallel,
        value_bytes=value_bytes(config),
        length=length,
    )
    fits = memory.sequences >= _CACHED_SEQUENCES
    report.lines += [
        f"  per GPU: weights {gib(memory.weights)}, KV cache {gib(memory.cache)}"
        f" ({shape.kv_bytes(value_bytes(config)) / 1024:.0f} KiB a token over the engine's GPUs)",
        f"  {'fits' if fits else 'does not fit'}: {memory.sequences:.0f} sequences of {length} tokens at a time",
    ]
    if not fits:
        report.problems.append(
            f"generation holds {memory.sequences:.0f} sequences of {length} tokens at a time, {_CACHED_SEQUENCES} are "
            "wanted: raise generation.tensor_parallel_size or gpu_memory_utilization, or lower model.max_length"
        )


def _count_disk(config: Config, shape: Shape, report: DryRun) -> None:
    names, model = models_trained(config), kept_bytes(config, shape)
    base = shape.parameters * value_bytes(config) if config.model.scratch else 0
    lora = config.training.lora
    trained = shape.lora_parameters(lora) if lora else shape.parameters
    resume = trained * (value_bytes(config) + 12)
    total = len(names) * model + base + _RESUME_CHECKPOINTS * resume
    report.lines.append(
        f"disk: {len(names)} models ({', '.join(names)}) of {gib(model)}"
        + (f" and the base of {gib(base)}" if base else "")
        + f" + {_RESUME_CHECKPOINTS} checkpoints to resume from of {gib(resume)} = {gib(total)}"
        + ("; those that are served or undecided stay" if config.retention == "needed" else "")
    )


def _check_resources(config: Config, report: DryRun) -> None:
    generation, training, cluster = config.generation, config.training, config.cluster
    needs = {
        "training": _training_needs(config, training.gpus, generation.gpus),
        "generation": generation.actors * generation.gpus,
    }
    gpus = max(needs.values())
    if gpus:
        report.lines.append(
            "GPUs: "
            + ", ".join(f"{use} {count:g}" for use, count in needs.items())
            + f"; one after the other, so {gpus:g}"
        )
        if not _gpu_bytes(config):
            report.lines.append("  whether it fits is not checked: cluster.gpu_memory_gb is not set")
    there = cluster.gpus
    if there is not None and gpus > there:
        report.problems.append(f"{gpus:g} GPUs are needed and cluster.gpus says {there:g}")
    if config.execution == "local" or cluster.address is not None:
        return
    cpus = dict(_cpus(config))
    peak = cpus["verification"] + max(cpus["training"], cpus["generation"])
    report.lines.append(
        "CPUs: " + ", ".join(f"{use} {count:g}" for use, count in cpus.items()) + f"; at most {peak:g} at a time of"
        f" {cluster.cpus} that the session declares"
    )
    if peak > cluster.cpus:
        report.problems.append(f"{peak:g} CPUs are needed at a time and cluster.cpus declares {cluster.cpus}")


def _cpus(config: Config) -> Iterator[tuple[str, float]]:
    yield "verification", config.verification.workers * config.verification.cpus
    yield "generation", config.generation.actors * config.generation.cpus
    yield "training", _training_needs(config, config.training.cpus, config.generation.cpus)


def _training_needs(config: Config, worker: float, engine: float) -> float:
    """What workers need of a resource; where models are validated, an engine runs beside as many as may come."""
    training = config.training
    return training.min_workers * worker if training.validate_steps is None else training.max_workers * worker + engine


def _count(fewest: int, most: int) -> str:
    return str(fewest) if fewest == most else f"{fewest} to {most}"


def _gpu_bytes(config: Config) -> float | None:
    stated = config.cluster.gpu_memory_gb
    return stated * GIB if stated else None


def _has_chat_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in _CHAT_TEMPLATES):
        return True
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and '"chat_template"' in settings.read_text(encoding="utf-8")


def _describe(shape: Shape) -> str:
    count = shape.parameters
    size = f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"
    return (
        f"{shape.architecture}, {size} parameters ({shape.layers} layers of {shape.hidden}, "
        f"{shape.heads}/{shape.kv_heads} heads, vocabulary {shape.vocabulary})"
    )

"""One side of the comparison in a process of its own: `python -m benchmarks.training.side SIDE FOLDER SIZE N THREADS`.

Prints one JSON object: seconds (of reference log-probabilities and of the steps), pairs, tokens, the peak of memory
above the level with the model loaded, and on a GPU the share of its peak arithmetic.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import peak_mib
from benchmarks.training.setting import BETA, LEARNING_RATE, SIZES, Size, config_of, job_of
from spftsql.records import TrainRow, read_records
from spftsql.training.batches import Encoded
from spftsql.training.job import prepare
from spftsql.training.local import LocalEngine
from spftsql.training.model import load_causal_lm
from spftsql.training.reference import reference_logps
from spftsql.training.steps import model_dtype, run_steps


class Watch:
    """Seconds, by the clock and of the processor, of everything that was done `with` it."""

    def __init__(self) -> None:
        """Has counted nothing yet."""
        self.wall = self.cpu = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter() - self._began[0]
        self.cpu += time.process_time() - self._began[1]

    def figures(self) -> dict[str, float]:
        """As a side prints them."""
        return {"seconds": self.wall, "cpu_seconds": self.cpu}


class Memory:
    """The peak of memory above the level at which it was made; on a GPU that of the GPU, else the process's."""

    def __init__(self, device: torch.device) -> None:
        """Starts to watch."""
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._level = torch.cuda.memory_allocated(device) / 2**20
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            self._level = peak_mib(os.getpid())

    def above(self) -> float:
        """MiB."""
        on_gpu = self._device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self._device) / 2**20 if on_gpu else peak_mib(os.getpid())
        return peak - self._level


def ours(folder: Path, size: Size, per_schema: int, threads: int, mode: str, device: torch.device) -> dict[str, Any]:
    """Reference log-probabilities and steps as `execution: local` has them."""
    from spftsql.training.checkpoints import Progress

    config, job = config_of(size, threads), job_of(folder, mode, per_schema, size)
    prepared = prepare(job, config)
    lines: list[dict[str, Any]] = []
    loaded = load_causal_lm(prepared.model, model_dtype(config, device)).to(device)
    memory = Memory(device)
    del loaded
    reference, watch = None, Watch()
    if mode == "dpo":
        with watch:
            dtype = model_dtype(config, device)
            reference = reference_logps(prepared, config.training, dtype, device, 0, 1, lambda sums: sums)
    engine = LocalEngine(prepared, config, device, None)
    with watch:
        run_steps(engine, prepared, reference, Progress(), config, lines.append)
    return {
        **watch.figures(),
        "tokens": sum(line["tokens"] for line in lines),
        "memory_mib": memory.above(),
        "losses": [line["loss"] for line in lines],
        "mfu": [line["mfu"] for line in lines if "mfu" in line][2:],
    }


def trl_dpo(folder: Path, size: Size, per_schema: int, threads: int, mode: str, device: torch.device) -> dict[str, Any]:
    """TRL's `DPOTrainer`: reference log-probabilities ahead, no evaluation, no recomputation, SDPA."""
    import trl
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoTokenizer

    disable_progress_bars()
    rows = read_records(folder / f"pairs-{per_schema}.parquet", TrainRow)
    model = load_causal_lm(folder / "model", getattr(torch, size.precision) if device.type == "cuda" else torch.float32)
    settings: dict[str, Any] = {
        "beta": BETA,
        "loss_type": ["sigmoid"],
        "precompute_ref_log_probs": True,
        "precompute_ref_batch_size": size.batch_size,
        "per_device_train_batch_size": size.batch_size,
        "gradient_accumulation_steps": 1,
        "max_steps": size.steps,
        "learning_rate": LEARNING_RATE,
        "optim": "adamw_torch_fused",
        "max_length": None,
        "gradient_checkpointing": False,
        "bf16": device.type == "cuda",
        "use_cpu": device.type != "cuda",
        "dataloader_pin_memory": device.type == "cuda",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    watch, precompute = Watch(), trl.DPOTrainer._precompute_ref_logps

    def watched(*given: Any, **named: Any) -> Any:
        with watch:
            return precompute(*given, **named)

    trl.DPOTrainer._precompute_ref_logps = watched
    memory = Memory(device)
    with tempfile.TemporaryDirectory() as output:
        trainer = trl.DPOTrainer(
            model=model,
            args=trl.DPOConfig(output_dir=output, **settings),
            train_dataset=Dataset.from_list(
                [{"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected} for row in rows]
            ),
            processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        )
        with watch:
            trainer.train()
    return {
        **watch.figures(),
        "tokens": trainer.state.num_input_tokens_seen,
        "memory_mib": memory.above(),
        "config": settings,
    }


def plain_sft(
    folder: Path, size: Size, per_schema: int, threads: int, mode: str, device: torch.device
) -> dict[str, Any]:
    """A plain loop: shuffled rows, padded on the right to the longest of the batch, logits everywhere."""
    prepared = prepare(job_of(folder, mode, per_schema, size), config_of(size, threads))
    model = load_causal_lm(folder / "model", torch.float32).to(device).train()
    memory = Memory(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    order = torch.randperm(len(prepared.rows), generator=torch.Generator().manual_seed(0)).tolist()
    tokens = 0
    watch = Watch()
    with watch:
        for step in range(size.steps):
            rows = [prepared.rows[i] for i in order[step * size.batch_size : (step + 1) * size.batch_size]]
            tokens += sum(row.length for row in rows)
            ids, labels, mask = (values.to(device) for values in _padded(rows, prepared.pad_id))
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return {**watch.figures(), "tokens": tokens, "memory_mib": memory.above()}


def _padded(rows: Sequence[Encoded], pad_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, labels and attention mask of a batch."""
    length = max(row.length for row in rows)
    ids = torch.full((len(rows), length), pad_id)
    labels = torch.full((len(rows), length), -100)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for n, row in enumerate(rows):
        ids[n, : row.length] = torch.tensor(row.prompt + row.chosen)
        labels[n, len(row.prompt) : row.length] = torch.tensor(row.chosen)
        mask[n, : row.length] = 1
    return ids, labels, mask


SIDES = {"ours-dpo": ours, "ours-sft": ours, "trl-dpo": trl_dpo, "plain-sft": plain_sft}


def main() -> None:
    """Runs one side."""
    side, folder, size, per_schema, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    device = torch.device("cuda" if size == "gpu" else "cpu")
    with tempfile.TemporaryDirectory() as cache:  # nothing that another run has computed
        os.environ["SPFTSQL_CACHE"] = cache
        mode = side.partition("-")[2]
        figures = SIDES[side](Path(folder), SIZES[size], int(per_schema), int(threads), mode, device)
    print(json.dumps({"pairs": SIZES[size].batch_size * SIZES[size].steps, **figures}))


if __name__ == "__main__":
    main()

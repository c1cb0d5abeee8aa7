"""`python -m benchmarks.training [--repeats N] [--only FIGURE …] [--gpu]`: a table, and as its last line one JSON.

Pairs per second of `dpo` beside TRL's `DPOTrainer`, and rows per second of `sft` beside a plain transformers loop,
each with one and with eight questions per schema; and how much memory each takes above its level with the model loaded.
Both sides run in turns, each time in a process of its own, with the same model, rows, precision, threads and steps;
reference log-probabilities count on both sides, loading and tokenizing on neither. With `--gpu` the same on a GPU with
a larger model, and the share of its peak that the arithmetic reaches. The schemas are found through SPFTSQL_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import Ratio, machine, markdown, ratio
from benchmarks.training.setting import SIZES, build

_COMPARISONS = (
    ("vs_trl", "ours-dpo", "trl-dpo", 1, "at least 1.3"),
    ("vs_trl_shared", "ours-dpo", "trl-dpo", 8, "at least 3"),
    ("sft_vs_plain", "ours-sft", "plain-sft", 1, "at least 1.1"),
    ("sft_vs_plain_shared", "ours-sft", "plain-sft", 8, "at least 2"),
)


def main() -> None:
    """Runs the comparisons."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side, in turns")
    parser.add_argument("--threads", type=int, default=2, help="threads of each side")
    parser.add_argument("--gpu", action="store_true", help="a 0.5B model on a GPU in bfloat16 instead")
    parser.add_argument("--tiny", action="store_true", help="a few seconds of everything, to see that all runs")
    names = [name for name, *_ in _COMPARISONS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="FIGURE", help=", ".join(names))
    given = parser.parse_args()
    data = os.environ.get("SPFTSQL_DATA")
    if not data:
        raise SystemExit("benchmarks.training: set SPFTSQL_DATA to the folder of the benchmark data")
    import torch

    if given.gpu and not torch.cuda.is_available():
        print("not measured: there is no GPU here")
        print(json.dumps({"gpu": "not measured"}))
        return
    name = "gpu" if given.gpu else "tiny" if given.tiny else "cpu"
    print(machine(), flush=True)
    print(SIZES[name], flush=True)
    figures: dict[str, Ratio] = {}
    gpu: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), Path(data), SIZES[name])
        told = False
        for figure, one, other, per_schema, target in _COMPARISONS:
            if figure not in given.only:
                continue
            runs: dict[str, list[dict[str, Any]]] = {one: [], other: []}
            for _ in range(given.repeats):
                for side in (one, other):
                    runs[side].append(_run(side, folder, name, per_schema, given.threads))
            if "config" in runs[other][0] and not told:
                print(f"TRL: {json.dumps(runs[other][0]['config'])}", flush=True)
                told = True
            figures[figure] = ratio([r["seconds"] for r in runs[other]], [r["seconds"] for r in runs[one]])
            processor = ratio([r["cpu_seconds"] for r in runs[other]], [r["cpu_seconds"] for r in runs[one]])
            figures[f"{figure}_processor"] = processor  # of use where other work disturbs the clock
            memory = ratio([r["memory_mib"] for r in runs[one]], [r["memory_mib"] for r in runs[other]])
            if figure.startswith("vs_trl"):
                figures[f"activation_memory_{figure}"] = memory  # at most 0.5
            rows = [(side, *_row(runs[side])) for side in (one, other)]
            print(
                f"\n{figure}: {figures[figure]} ({target}); by processor time {processor}; memory {memory}", flush=True
            )
            print(markdown(rows, ("side", "pairs/s", "tokens/s", "MiB above the model", "MFU")), flush=True)
            if given.gpu and runs[one][0]["mfu"]:
                gpu[f"mfu_{figure}"] = max(max(run["mfu"]) for run in runs[one])
    result = {key: round(value.median, 3) for key, value in figures.items()}
    spread = {f"{key}_spread": [round(value.low, 3), round(value.high, 3)] for key, value in figures.items()}
    print(json.dumps({**result, **spread, **gpu, "gpu": "measured" if given.gpu else "not measured"}))


def _run(side: str, folder: str, size: str, per_schema: int, threads: int) -> dict[str, Any]:
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.training.side", side, folder, size, str(per_schema), str(threads)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"benchmarks.training: {side} failed\n{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _row(runs: list[dict[str, Any]]) -> tuple[str, str, str, str]:
    best = min(runs, key=lambda run: run["seconds"])
    tokens = f"{best['tokens'] / best['seconds']:,.0f}" if best["tokens"] else "–"
    mfu = f"{max(best['mfu']):.1%}" if best.get("mfu") else "not measured"
    return f"{best['pairs'] / best['seconds']:.2f}", tokens, f"{best['memory_mib']:,.0f}", mfu


if __name__ == "__main__":
    main()

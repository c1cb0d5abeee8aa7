"""Checkpoints of a training on disk: complete or not there, and the same for any number of workers.

A checkpoint is a folder with what was trained as whole tensors (weights and both moments of AdamW, float32), divided
over as many files as there were workers, and `state.json`: the step, what was measured so far, and the size of every
file. Nothing in it depends on the number of workers, the ZeRO stage or the way of execution, so that a training goes
on with others. It is written under another name, synced, and renamed; of two kept, the newest that is whole counts.
Random numbers and the position in the data need no place of their own: both follow from the job's seed and the step.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spftsql.errors import Fault, disk_faults

STATE = "state.json"
KEPT = 2  # a checkpoint and the one before it
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW, beside the weight itself


@dataclass
class Progress:
    """How far a training is; saved with every checkpoint."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    margin_start: float | None = None  # the mean margin of the first step's pairs, before it


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns the errors of a disk that is full or fails into a `Fault`; safetensors has an error of its own for them."""
    try:
        with disk_faults(folder):
            yield
    except SafetensorError as error:
        raise Fault(f"{folder} cannot be written ({error}): make room, then run again") from None


def sync_folder(folder: Path) -> None:
    """Makes sure that the files of a folder, and their names, are on the disk itself."""
    for path in (*folder.iterdir(), folder):
        if path.is_file() or path == folder:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def write_checkpoint(
    folder: Path,
    progress: Progress,
    tensors: Mapping[str, Tensor],
    rank: int,
    workers: int,
    total: Callable[[Tensor], Tensor],
) -> None:
    """Writes the checkpoint `folder / step-N`; every worker calls this, with its part of the tensors.

    `total` adds a tensor up over workers. Raises `Fault` on every worker when one of them cannot write; what was there
    before stays.
    """
    final = folder / f"step-{progress.step:08d}"
    partial = folder / f".{final.name}.partial"

    def everywhere(action: Callable[[], None]) -> None:
        """Runs `action` here; afterwards all workers have, or all of them fail."""
        failure: Fault | None = None
        try:
            with writing(folder):
                action()
        except Fault as fault:
            failure = fault
        if total(torch.tensor([0.0 if failure is None else 1.0])).item() > 0:
            shutil.rmtree(partial, ignore_errors=True)
            raise failure or Fault(f"another worker cannot write below {folder}: make room, then run again")

    def begin() -> None:
        if rank == 0:
            for left in folder.glob(".*.partial"):
                shutil.rmtree(left, ignore_errors=True)
            partial.mkdir(parents=True)

    def write() -> None:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial / _part(rank, workers))

    def commit() -> None:
        if rank == 0:
            sizes = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
            state = {"progress": asdict(progress), "files": sizes}
            (partial / STATE).write_text(json.dumps(state), encoding="utf-8")
            sync_folder(partial)
            shutil.rmtree(final, ignore_errors=True)  # one that was not whole, or this training would be beyond it
            partial.rename(final)
            sync_folder(folder)
            for old in sorted(folder.glob("step-*"))[:-KEPT]:
                shutil.rmtree(old, ignore_errors=True)

    for action in (begin, write, commit):
        everywhere(action)


def _part(rank: int, workers: int) -> str:
    return f"part-{rank:05d}-of-{workers:05d}.safetensors"


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint below `folder` that is whole."""
    return next((path for path in sorted(folder.glob("step-*"), reverse=True) if _state(path) is not None), None)


def read_progress(checkpoint: Path) -> Progress:
    """How far the training of a checkpoint was."""
    state = _state(checkpoint)
    assert state is not None  # `latest_checkpoint` names no other
    return Progress(**state["progress"])


def _state(checkpoint: Path) -> dict[str, Any] | None:
    """What `state.json` says; None when the checkpoint is not whole."""
    try:
        state: dict[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        whole = all((checkpoint / name).stat().st_size == size for name, size in state["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return state if whole else None


@contextmanager
def open_tensors(checkpoint: Path) -> Iterator[Mapping[str, Tensor]]:
    """The tensors of a checkpoint by name, each read from the disk when it is asked for."""
    with ExitStack() as stack:
        yield _Tensors([stack.enter_context(safe_open(path, "pt")) for path in sorted(checkpoint.glob("part-*"))])


class _Tensors(Mapping[str, Tensor]):
    def __init__(self, files: list[Any]) -> None:
        self._where = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (no iterator)

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._where[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

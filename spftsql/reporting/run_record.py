"""A run directory as it stands, read without touching it: while the run goes on, after a crash, and when it is done.

Everything comes from what the run writes down: `events.jsonl`, `metrics.jsonl`, `config.yaml`, `result.json`, and the
Parquet files of its stages, of which only counts are read here.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from spftsql.config import Config
from spftsql.errors import UserError
from spftsql.recipes import recipe_of_run
from spftsql.reporting.damage import gone, parquet_files, read_or_note
from spftsql.selfplay.candidates import FAULT
from spftsql.selfplay.gate import Decision
from spftsql.selfplay.table import Result
from spftsql.usage import Use
from spftsql.whereabouts import whereabouts

StageState = Literal["built", "running", "interrupted"]
HolderState = Literal["running", "elsewhere", "none"]
Event = Mapping[str, Any]
_OF_FOLD = re.compile(r"-fold-(\d+)$")
_TAIL = 65_536  # bytes at the end of the metrics, enough for its last lines


@dataclass(frozen=True)
class Holder:
    """The process that has the run directory: `elsewhere` when it is said to be on another host, so out of sight."""

    state: HolderState
    host: str = ""
    pid: int | None = None


@dataclass(frozen=True)
class StageRecord:
    """One stage: what it did and what it cost.

    `seconds` are those of the build that succeeded, or until now; `lost` those of builds that were cut off; `began` is
    the time (epoch) of the last try. Counts are 0 where a stage has no such rows, and while it is not built.
    """

    name: str
    key: str
    state: StageState
    began: float
    seconds: float
    lost: float = 0.0
    tries: int = 1
    requests: int = 0
    samples: int = 0
    tokens: int = 0  # written by models
    executions: int = 0
    trained: int = 0  # tokens, over all steps

    @property
    def fold(self) -> int | None:
        """The fold of the labels that it is of; None for those of the run itself."""
        return fold_of(self.name)

    def folder(self, root: Path) -> Path:
        """Where its files are when it is built."""
        return root / "stages" / f"{self.name}-{self.key}"

    @property
    def kind(self) -> str:
        """`generate`, `verify`, `train` or `other`."""
        head = self.name.split("-")[0]
        return head if head in ("generate", "verify", "train") else "other"


@dataclass(frozen=True)
class Step:
    """How far the training in progress is."""

    job: str
    step: int
    steps: int


@dataclass(frozen=True)
class RunRecord:
    """All of it. `config` and `result` are None where they are missing or of another version.

    `mixes` counts verdicts by candidate and exam; those of the gate are also of the folds' candidates of that name,
    which answer their own labels. `selection` is the accuracy that chooses main model and opponent; `uses` say by stage
    how busy its workers were, for stages that were built and not kept; `workers` on which machines those of the stage
    at work have started. `damaged` are lines about what cannot be read.
    """

    root: Path
    config: Config | None
    events: tuple[Event, ...]
    holder: Holder
    stages: tuple[StageRecord, ...]
    mixes: Mapping[str, Mapping[str, Mapping[str, int]]]
    selection: Mapping[str, float]
    result: Result | None
    step: Step | None
    attempts: int
    now: float
    uses: Mapping[str, tuple[Use, ...]] = field(default_factory=dict)
    workers: Mapping[str, list[str]] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the last attempt came to its end."""
        return self.result is not None and bool(self.of("finished"))

    @property
    def current(self) -> StageRecord | None:
        """The stage that is being built, or at which the run was cut off."""
        return next((stage for stage in reversed(self.stages) if stage.state != "built"), None)

    @property
    def folds(self) -> list[int]:
        """The folds of the labels for which the loop was played (`gate.folds`), as far as it has come."""
        return sorted({event["fold"] for event in _counting(self.events) if event.get("fold") is not None})

    @property
    def decisions(self) -> list[Decision]:
        """What the gate has decided so far."""
        return list(self.result.decisions) if self.result else _decisions(self.of("gate"))

    @property
    def synthetic(self) -> list[Decision]:
        """The same comparisons on the selection set, which decide nothing."""
        return list(self.result.synthetic) if self.result else _decisions(self.of("gate-synthetic"))

    def of(self, kind: str, fold: int | None = None) -> list[Event]:
        """The events of a kind that count, in their order: those of the run itself, or of a fold."""
        return [e for e in _counting(self.events) if e["event"] == kind and e.get("fold") == fold]


def read_run(root: Path) -> RunRecord:
    """Reads a run directory. Raises `UserError` where there is none."""
    if not (root / "config.yaml").is_file() and not (root / "events.jsonl").is_file():
        raise UserError(f"{root} is no run directory: it has neither config.yaml nor events.jsonl")
    now = time.time()
    events = read_lines(root / "events.jsonl")
    holder = _holder(root, events)
    counting = _counting(events)
    trained = _trained_tokens(root)
    damaged = list[str]()
    stages = tuple(_counted(stage, root, trained, damaged) for stage in _stages(events, holder, now))
    used = {(event["name"], event["key"]) for event in counting if event["event"] == "stage"}
    built = [stage for stage in stages if stage.state == "built" and (stage.name, stage.key) in used]
    result = _result(root) if any(event["event"] == "finished" for event in counting) else None
    training = any(stage.state == "running" and stage.kind == "train" for stage in stages)
    return RunRecord(
        root=root,
        config=_config(root),
        events=events,
        holder=holder,
        stages=stages,
        mixes=_mixes(counting),
        selection={
            e["candidate"]: e["accuracy"] for e in counting if e["event"] == "selection" and e.get("fold") is None
        },
        result=result,
        step=_last_step(root, [s for s in stages if s.state == "running"]) if training else None,
        attempts=sum(event["event"] == "opened" for event in events),
        now=now,
        uses=_uses(events),
        workers=_workers(root, stages),
        damaged=(*gone(root, [stage.folder(root) for stage in built]), *damaged),
    )


def fold_of(name: str) -> int | None:
    """The fold of the labels that a stage or a training is of, by its name; None for those of the run itself."""
    found = _OF_FOLD.search(name)
    return int(found[1]) if found else None


def right_and_known(mix: Mapping[str, int]) -> tuple[int, int]:
    """Right answers among counts of verdicts, and all that are known: a fault says nothing about the SQL."""
    return mix.get("equal", 0), sum(count for verdict, count in mix.items() if verdict != FAULT)


def read_lines(path: Path) -> tuple[Event, ...]:
    """The rows of a JSON lines file; a line that is cut off or broken is left out, and a file that is missing empty."""
    rows = []
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return tuple(rows)


def _counting(events: Sequence[Event]) -> list[Event]:
    """The events of the last attempt when it came to its end, else of all: a resumed run says again what it keeps."""
    last = max((i for i, event in enumerate(events) if event.get("event") == "opened"), default=0)
    ours = events[last:]
    done = any(event.get("event") == "finished" for event in ours)
    return [
        event for event in (ours if done else events) if "event" in event and (done or event["event"] != "finished")
    ]


def _mixes(events: Sequence[Event]) -> dict[str, dict[str, dict[str, int]]]:
    """Counts of verdicts by candidate and exam, those of the folds added to the gate's."""
    by_fold: dict[int | None, dict[str, dict[str, dict[str, int]]]] = {}
    for event in events:
        if event["event"] == "verdicts":
            counts = {k: v for k, v in event.items() if k not in ("time", "event", "candidate", "exam", "fold")}
            by_fold.setdefault(event.get("fold"), {}).setdefault(event["candidate"], {})[event["exam"]] = counts
    found = by_fold.pop(None, {})
    for candidate, exams in found.items():
        gates = [of_fold[candidate].get("gate", {}) for of_fold in by_fold.values() if candidate in of_fold]
        if gates:
            exams["gate"] = dict(sum(map(Counter, gates), Counter(exams.get("gate", {}))))
    return found


def _decisions(events: Sequence[Event]) -> list[Decision]:
    """What the gate's events say; an attempt that goes on says again what one before it has said."""
    known = {item.name for item in fields(Decision)}
    found = []
    for event in events:
        try:
            found.append(Decision(**{name: value for name, value in event.items() if name in known}))
        except TypeError:  # there is no gate, and the event says who is served instead
            continue
    return list(dict.fromkeys(found))


def _holder(root: Path, events: Sequence[Event]) -> Holder:
    opened = next((event for event in reversed(events) if event.get("event") == "opened"), None)
    host, pid = (str(opened["host"]), int(opened["pid"])) if opened else ("", None)
    if host and host != socket.gethostname():
        ended = any(e.get("event") == "finished" for e in _counting(events))
        return Holder("none" if ended else "elsewhere", host, pid)
    locked = _locked_by(root / ".lock")
    if locked is not None:
        return Holder("running", host or socket.gethostname(), locked)
    return Holder("none", host, pid)


def _locked_by(lock: Path) -> int | None:
    """The process on this machine that holds a lock file, as the kernel tells it; asking takes no lock.

    Where the kernel has no such list, None: a run is then said to be held by nobody.
    """
    try:
        inode = os.stat(lock).st_ino
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == str(inode):
            return int(fields[4])
    return None


def _stages(events: Sequence[Event], holder: Holder, now: float) -> list[StageRecord]:
    """The stages by their last tries, in the order of their first mention; another key of a name replaces it."""
    found: dict[str, StageRecord] = {}
    started: dict[str, float] = {}  # by key
    lost: dict[str, float] = {}
    tries: dict[str, int] = {}
    last = 0.0
    for event in events:
        moment = float(event.get("time", last))
        if event.get("event") == "opened":  # whatever was at work until then was cut off
            for key, began in started.items():
                lost[key] = lost.get(key, 0.0) + max(0.0, last - began)
            started.clear()
        last = moment
        if event.get("event") != "stage":
            continue
        name, key, outcome = event["name"], event["key"], event["outcome"]
        if outcome == "started":
            if key in started:
                lost[key] = lost.get(key, 0.0) + max(0.0, moment - started[key])
            started[key] = moment
            tries[key] = tries.get(key, 0) + 1
            found[name] = StageRecord(name, key, "running", moment, 0.0)
        elif outcome == "built":
            began = started.pop(key, moment)
            found[name] = StageRecord(name, key, "built", began, float(event.get("seconds", 0.0)))
        elif name not in found or found[name].key != key:  # kept, and its building was not seen
            found[name] = StageRecord(name, key, "built", moment, 0.0)
    rows = []
    for stage in found.values():
        state, seconds, gone = stage.state, stage.seconds, lost.get(stage.key, 0.0)
        if state == "running":
            alive = holder.state != "none" and stage.key in started
            state = "running" if alive else "interrupted"
            seconds = max(0.0, now - stage.began) if alive else 0.0
            if not alive and stage.key in started:
                gone += max(0.0, last - stage.began)
        rows.append(
            StageRecord(stage.name, stage.key, state, stage.began, seconds, gone, max(1, tries.get(stage.key, 1)))
        )
    return rows


def _counted(stage: StageRecord, root: Path, trained: Mapping[str, int], damaged: list[str]) -> StageRecord:
    """A built stage with the number of its rows and tokens; of a file that cannot be read, none and a line."""
    folder = root / "stages" / f"{stage.name}-{stage.key}"
    if stage.kind == "train":
        folder = folder if folder.is_dir() else folder.with_name(f"{folder.name}.partial")
        part = "" if stage.fold is None else f"-fold-{stage.fold}"
        names = [f"{file.stem}{part}" for file in folder.glob("*.parquet")]
        return replace(stage, trained=sum(trained.get(name, 0) for name in names))
    if stage.state != "built" or stage.kind == "other":
        return stage
    if not folder.is_dir():
        return stage

    def total(path: Path, count: Callable[[Path], int]) -> int:
        return sum(read_or_note(root, file, count, damaged) or 0 for file in parquet_files(path))

    requests = total(folder / "requests.parquet", _rows)
    if stage.kind == "verify":
        return replace(stage, requests=requests, executions=total(folder / "verdicts", _rows))
    samples, tokens = (total(folder / "samples", count) for count in (_rows, _tokens))
    return replace(stage, requests=requests, samples=samples, tokens=tokens)


def _rows(file: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.ParquetFile(file).metadata.num_rows)


def _tokens(file: Path) -> int:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    return pc.sum(pq.read_table(file, columns=["tokens"]).column("tokens")).as_py() or 0


def _trained_tokens(root: Path) -> dict[str, int]:
    """Tokens of each training by its name; a step that a resume repeats cost its tokens twice."""
    found: dict[str, int] = {}
    for row in read_lines(root / "metrics.jsonl"):
        if "job" in row:
            found[row["job"]] = found.get(row["job"], 0) + int(row.get("tokens", 0))
    return found


def _uses(events: Sequence[Event]) -> dict[str, tuple[Use, ...]]:
    """What the stages say of their workers; of a stage that was built again, the last time."""
    known = {item.name for item in fields(Use)}
    found: dict[str, dict[str, Use]] = {}
    for event in events:
        if event.get("event") == "use":
            use = Use(**{name: value for name, value in event.items() if name in known})
            found.setdefault(str(event["stage"]), {})[use.who] = use
    return {stage: tuple(by_who.values()) for stage, by_who in found.items()}


def _workers(root: Path, stages: Sequence[StageRecord]) -> dict[str, list[str]]:
    running = next((stage for stage in reversed(stages) if stage.state == "running"), None)
    return {} if running is None else whereabouts(Path(f"{running.folder(root)}.partial"))


def _last_step(root: Path, running: Sequence[StageRecord]) -> Step | None:
    path = root / "metrics.jsonl"
    try:
        if not running or path.stat().st_mtime < running[-1].began:
            return None
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            row = json.loads(line)
            return Step(str(row["job"]), int(row["step"]), int(row["steps"]))
        except (ValueError, KeyError, TypeError):
            continue
    return None


def _config(root: Path) -> Config | None:
    try:
        return recipe_of_run(root)
    except UserError:
        return None


def _result(root: Path) -> Result | None:
    try:
        return Result.from_json((root / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return None

"""Commands of README.md and docs/ as tests run them: what makes them small, and what stands for the reader's own.

`tests/fixtures/docs/commands.yaml` lists them; `tests/unit/test_docs.py` holds that nothing else is unmarked.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests import loops
from tests.conftest import CHECKOUT

LISTED: Mapping[str, Any] = yaml.safe_load((CHECKOUT / "tests" / "fixtures" / "docs" / "commands.yaml").read_text())
WIDE = "models/wide"  # of random weights like the tiny ones, and with room for a schema
MARK = "SPFTSQL_TEST_OF_DOCS"  # in the environment of all that a command starts
Places = Mapping[str, str]  # what is there for the names in `stands_for`
OURS: Places = {}  # nothing is the reader's own


def _overrides(settings: Mapping[str, str]) -> list[str]:
    return [f"--set={name}={value}" for name, value in settings.items()]


# Enough of a training for SQL that runs, and little of all else.
_SHORT = {**loops.SMALL, "sft.steps": "800", "generation.max_tokens": "60"}
_LIGHT = {"generation.engine": "transformers"}
_TINY = {"model.max_length": "128", "generation.max_tokens": "32"}
_WIDE = {"model.path": WIDE, "model.max_length": "1024", "prompt.max_schema_tokens": "200"}
_NOISE = {"synthesis.candidates": "2", "synthesis.filter": "confident_disagreement", "synthesis.votes": "2"}
SETTINGS: Mapping[str, Sequence[str]] = {
    "tiny": _overrides(_TINY),
    "phrasing": _overrides({**_WIDE, **_NOISE, "generation.max_tokens": "12"}),
    "few": ["--limit=4", "--n=2", "--max-tokens=16"],
    "light": ["--engine=transformers", "--set=generation.gpus=0"],
    "light-port": ["--engine=transformers", "--set=generation.gpus=0", "--port", "8000"],
    "endpoint": ["--url", "http://127.0.0.1:8000"],
    "short": _overrides(_SHORT),
    "short-local": _overrides({"execution": "local", **_LIGHT, **_SHORT}),
    "small": _overrides({**loops.SMALL, **_LIGHT, "selfplay.baselines": "[]"}),
    "stage": ["--follow", *_overrides({**_TINY, **_LIGHT, "selfplay.optimization.steps": "2"})],
}


@dataclass(frozen=True)
class Command:
    """A command as a page has it, what the test adds to it, and the exit code that it has."""

    text: str
    more: Sequence[str] = ()
    exit: int = 0

    def line(self, places: Places = OURS) -> list[str]:
        """What is executed, with `places` for what is the reader's own."""
        words = [_placed(word, places) for word in [*shlex.split(self.text)[1:], *self.more]]
        return [sys.executable, "-m", "spftsql", *words]


def _placed(word: str, places: Places) -> str:
    for text, name in LISTED["stands_for"].items():
        if name in places and (word == text or "/" in text):
            word = word.replace(text, places[name])
    return word


def listed(group: str) -> list[Command]:
    rows = [row if isinstance(row, dict) else {"command": row} for row in LISTED["commands"][group]]
    return [Command(row["command"], SETTINGS[row["with"]] if "with" in row else (), row.get("exit", 0)) for row in rows]


def run(
    folder: Path, command: Command, places: Places = OURS, answer: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command of a page, and holds its exit code against the list."""
    done = subprocess.run(
        command.line(places),
        cwd=folder,
        env=_environment(folder, environment),
        input=answer,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == command.exit, (command.text, done.stdout[-3000:], done.stderr[-3000:])
    assert "Traceback" not in done.stderr, command.text
    return done


@contextmanager
def started(
    folder: Path, command: Command, places: Places = OURS, **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A command that goes on, with the file of its output; killed at the end where it still runs."""
    output = folder / f"output-{time.monotonic_ns()}"
    with output.open("w") as file:
        process = subprocess.Popen(
            command.line(places),
            cwd=folder,
            env=_environment(folder, environment),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        yield process, output
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def serving(folder: Path, command: Command, places: Places, **environment: str) -> Iterator[None]:
    """A `spftsql serve` of a page that answers; ended by Ctrl-C, after which nothing is left of it."""
    with started(folder, command, places, **environment) as (process, output):
        until(lambda: "Ctrl-C ends it" in output.read_text() or process.poll() is not None, 900)
        assert process.poll() is None, output.read_text()
        yield
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(120) == 0, output.read_text()
        said = output.read_text().splitlines()
        assert said[-1].endswith("Ctrl-C ends it."), said
    until(lambda: not left(folder), 30)


def left(folder: Path) -> list[str]:
    """The command lines of the processes that come from a command which was run in `folder`."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={folder}".encode() in (place / "environ").read_bytes().split(b"\0"):
                found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it has ended meanwhile, or belongs to somebody else
    return [line for line in found if line]


def until(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
        time.sleep(0.5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _environment(folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, MARK: str(folder), **environment}


def recipe_of(page: str, name: str) -> str:
    """The recipe of that name as a page of docs/ has it."""
    text = (CHECKOUT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    (found,) = [part for part in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if f"name: {name}\n" in part]
    return str(found)


def own_database(folder: Path, model: str) -> None:
    """What "Your own database in ten minutes" speaks of: a database, labels, a recipe and a model directory."""
    with closing(sqlite3.connect(folder / "sales.sqlite")) as connection:
        connection.executescript(
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT, region TEXT); "
            "INSERT INTO orders VALUES (1, 'a', 'north'), (2, 'b', 'south');"
        )
    (folder / "labels").mkdir()
    label = {"db_id": "sales", "question": "how many orders are there", "sql": "SELECT COUNT(*) FROM orders"}
    for name in ("train", "gate", "test"):
        (folder / "labels" / f"{name}.jsonl").write_text(json.dumps(label) + "\n")
    (folder / "sales.yaml").write_text(recipe_of("own-database", "sales"))
    (folder / "models").mkdir()
    (folder / "models" / "Qwen2.5-Coder-1.5B-Instruct").symlink_to(model)

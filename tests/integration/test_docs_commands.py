"""The commands of README.md and docs/ that need files and servers alone, run as they stand there.

`tests/fixtures/docs/commands.yaml` lists them; `tests/unit/test_docs.py` holds that nothing else is unmarked.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import CHECKOUT
from tests.made_run import make_run
from tests.postgres import PASSWORD, Server

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(2400)]

LISTED: Mapping[str, Any] = yaml.safe_load((CHECKOUT / "tests" / "fixtures" / "docs" / "commands.yaml").read_text())
SETTINGS: Mapping[str, Sequence[str]] = {"tiny": ["model.max_length=128", "generation.max_tokens=32"]}


@dataclass(frozen=True)
class Command:
    """A command as a page has it, what makes it small, and the exit code that it has."""

    text: str
    small: Sequence[str] = ()
    exit: int = 0

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)[1:]


def listed(group: str) -> list[Command]:
    rows = [row if isinstance(row, dict) else {"command": row} for row in LISTED[group]]
    small = {name: [f"--set={setting}" for setting in settings] for name, settings in SETTINGS.items()}
    return [Command(row["command"], small.get(row.get("with"), ()), row.get("exit", 0)) for row in rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, data_root: Path, tiny_models: list[str]) -> Path:
    """A folder with what the pages speak of: databases, labels, recipes, predictions, models, runs."""
    folder = tmp_path_factory.mktemp("docs")
    with closing(sqlite3.connect(folder / "sales.sqlite")) as connection:
        connection.executescript(
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT, region TEXT); "
            "INSERT INTO orders VALUES (1, 'a', 'north'), (2, 'b', 'south');"
        )
    shop = (CHECKOUT / "tests" / "fixtures" / "templates" / "shop.sql").read_text()
    with closing(sqlite3.connect(folder / "Chinook_Sqlite.sqlite")) as connection:
        connection.executescript(shop)
    with closing(sqlite3.connect(folder / "shop.sqlite")) as connection:
        connection.executescript(
            "CREATE TABLE customer (city TEXT); INSERT INTO customer VALUES ('Oslo'), ('Oslo'), ('Rome');"
        )
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect(folder / "events.duckdb") as events:
        events.execute("CREATE TABLE clicks AS SELECT range AS id FROM range(10)")
    (folder / "labels").mkdir()
    label = {"db_id": "sales", "question": "how many orders are there", "sql": "SELECT COUNT(*) FROM orders"}
    for name in ("train", "gate", "test"):
        (folder / "labels" / f"{name}.jsonl").write_text(json.dumps(label) + "\n")
    for page, recipe in (("own-database", "sales"), ("synthesis", "chinook")):
        text = (CHECKOUT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        (found,) = [part for part in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if f"name: {recipe}\n" in part]
        (folder / f"{recipe}.yaml").write_text(found)
    (folder / "models").mkdir()
    (folder / "models" / "Qwen2.5-Coder-1.5B-Instruct").symlink_to(tiny_models[0])
    (folder / "data").mkdir()
    for benchmark in ("spider-dk", "bird"):
        (folder / "data" / benchmark).symlink_to(data_root / benchmark)
    (folder / "data" / "spider").mkdir()
    for part in [*(data_root / "spider").iterdir(), data_root / "spider-syn" / "train_spider.json"]:
        (folder / "data" / "spider" / part.name).symlink_to(part)  # the training set is that of the whole download
    (folder / "cluster").symlink_to(CHECKOUT / "cluster")
    shutil.copy(
        data_root / "predictions" / "spider-dev" / "dail-sql" / "DAIL-SQL+GPT-4.txt", folder / "predictions.sql"
    )
    golds = [row["SQL"] for row in json.loads((data_root / "bird" / "dev.json").read_text())]
    for name, wrong in (("predict_dev", 7), ("baseline", 3)):
        rows = ["SELECT 1" if i % wrong == 0 else sql for i, sql in enumerate(golds)]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    (folder / "runs").mkdir()
    for name in ("spider", "sales", "chinook"):
        make_run(folder / "made" / name)
        (folder / "made" / name / "demo").rename(folder / "runs" / name)
    return folder


def run(
    folder: Path, command: Command, replaced: Mapping[str, str] = {}, answer: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command of a page, some of its words replaced, and holds its exit code against the list."""
    words = [_replaced(word, replaced) for word in command.words]
    done = subprocess.run(
        [sys.executable, "-m", "spftsql", *words, *command.small],
        cwd=folder,
        env={**os.environ, **environment},
        input=answer,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == command.exit, (command.text, done.stdout[-3000:], done.stderr[-3000:])
    assert "Traceback" not in done.stderr, command.text
    return done


def _replaced(word: str, replaced: Mapping[str, str]) -> str:
    for old, new in replaced.items():
        word = word.replace(old, new) if "/" in old else (new if word == old else word)
    return word


@pytest.mark.parametrize("command", listed("files"), ids=lambda command: command.text)
def test_commands_about_files(folder: Path, command: Command) -> None:
    done = run(folder, command)
    assert done.stdout or done.stderr


@pytest.mark.parametrize("command", listed("scores"), ids=lambda command: command.text)
def test_commands_that_score(folder: Path, command: Command) -> None:
    assert "accuracy" in run(folder, command).stdout


@pytest.mark.parametrize("command", listed("servers"), ids=lambda command: command.text)
def test_commands_about_servers(folder: Path, command: Command, sales: str) -> None:
    places = {"postgresql://reader@db.example/sales": sales, "postgresql://reader@db/shop": sales}
    assert run(folder, command, places, PGPASSWORD=PASSWORD).stdout


@pytest.fixture(scope="module")
def sales(postgres: Server) -> str:
    postgres.run("CREATE DATABASE docs_sales")
    postgres.run(
        "CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders VALUES (1), (2); "
        "GRANT SELECT ON orders TO reader",
        "docs_sales",
    )
    return postgres.url("docs_sales")

"""The documentation: its commands exist, its links lead somewhere, its reference is that of the code."""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from spftsql.cli import app

CHECKOUT = Path(__file__).parents[2]
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
WRITTEN = [page for page in PAGES if page.parent.name != "reference"]
# In a block of its own, or between backticks.
BLOCK = re.compile(
    r"^[ ]{0,4}```[^\n]*\n(?P<text>.*?)^[ ]{0,4}```|(?:^ {4,}spftsql [^\n]*\n)+", re.MULTILINE | re.DOTALL
)
SHORT = "… "  # marks a mention, which need not be complete
INLINE = re.compile(r"`(spftsql [^`]+)`")


def commands(page: Path) -> list[str]:
    """Every `spftsql …` of a page: whole commands in blocks, and what is said of one within a sentence."""
    text = page.read_text(encoding="utf-8")
    lines = [line.strip() for match in BLOCK.finditer(text) for line in match[0].replace("\\\n", " ").splitlines()]
    found = [re.sub(r"\s#\s.*", "", line) for line in lines if line.startswith("spftsql ")]
    return [*found, *(f"{SHORT}{command}" for command in INLINE.findall(text))]


def complaint(line: str) -> str | None:
    """What the command line says against it; None when it can be parsed. Nothing is executed."""
    words = shlex.split(line.removeprefix(SHORT).replace("[", "").replace("]", ""))[1:]
    words = ["4" if word in ("N", "K") else word for word in words]
    if not words or any(word in ("…", "COMMAND") or "|" in word for word in words):
        return None  # said about commands, not one of them
    command, name = _root(), "spftsql"
    while hasattr(command, "list_commands"):
        if not words:
            return None  # the name of a group
        name = words.pop(0)
        command = command.get_command(None, name)
        if command is None:
            return f"{line}: there is no command {name}"
    if not words or "--help" in words:
        return None  # the name of a command
    try:
        command.make_context(name, [word for word in words if word != "…"])
    except Exception as error:
        if not hasattr(error, "format_message"):  # not a complaint about the command line
            raise
        message = error.format_message()
        return None if line.startswith(SHORT) and message.startswith("Missing") else f"{line}: {message}"
    return None


@cache
def _root() -> Any:
    return typer.main.get_command(app)


def test_commands_are_found() -> None:
    assert len(commands(CHECKOUT / "docs" / "quickstart.md")) >= 6
    assert len(commands(CHECKOUT / "README.md")) >= 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_in_the_pages_exist_with_their_options(page: Path) -> None:
    assert [found for line in commands(page) if (found := complaint(line))] == []


@pytest.mark.parametrize(
    "line",
    ["spftsql runn demo", "spftsql run demo --dryrun", "spftsql jobs log ID", "spftsql serve runs/x --port eight"],
)
def test_a_wrong_command_is_noticed(line: str) -> None:
    assert complaint(line)


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.stem)
def test_files_that_the_pages_name_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = {name for name in re.findall(r"`((?:cluster|jobs|benchmarks|lock|tests)/[\w./-]+)`", text)}
    links = {link for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)}
    written = {name for name in named if name.endswith(".jsonl")}  # by a benchmark that has yet to be run
    assert [name for name in named - written if not (CHECKOUT / name).exists()] == []
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_reference_is_that_of_the_code() -> None:
    sys.path.insert(0, str(CHECKOUT / "docs"))
    try:
        import reference
    finally:
        sys.path.pop(0)
    advice = "the code has changed: run `make reference`"
    pages = CHECKOUT / "docs" / "reference"
    assert (pages / "cli.md").read_text(encoding="utf-8") == reference.cli_page(), advice
    assert (pages / "config.md").read_text(encoding="utf-8") == reference.config_page(), advice


def test_recipes_in_the_pages_are_valid() -> None:
    import yaml

    from spftsql.recipes import validate

    text = (CHECKOUT / "docs" / "own-database.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert validate(yaml.safe_load(recipe), where="own-database.md").name == "sales"


@pytest.mark.long
def test_commands_for_ones_own_database_do_what_the_page_says(tmp_path: Path, tiny_models: list[str]) -> None:
    page = CHECKOUT / "docs" / "own-database.md"
    (recipe,) = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    connection = sqlite3.connect(tmp_path / "sales.sqlite")
    connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT)")
    connection.execute("INSERT INTO orders VALUES (1, 'a')")
    connection.commit()
    connection.close()
    (tmp_path / "labels").mkdir()
    label = {"db_id": "sales", "question": "how many orders are there", "sql": "SELECT COUNT(*) FROM orders"}
    for name in ("train", "gate", "test"):
        (tmp_path / "labels" / f"{name}.jsonl").write_text(json.dumps(label) + "\n")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "Qwen2.5-Coder-1.5B-Instruct").symlink_to(tiny_models[0])
    (tmp_path / "sales.yaml").write_text(recipe)
    # The others need a GPU, an endpoint or a server.
    tried = [
        line
        for line in commands(page)
        if not line.startswith(SHORT) and "postgresql:" not in line and line.split()[1] not in ("serve", "ask")
    ]
    tried.remove("spftsql run sales.yaml")
    assert len(tried) == 3
    for line in tried:
        extra = ["--set", "model.max_length=128", "--set", "generation.max_tokens=32"] if " run " in line else []
        command = [sys.executable, "-m", "spftsql", *shlex.split(line)[1:], *extra]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, (line, done.stdout, done.stderr)


@pytest.mark.long
def test_the_site_can_be_built(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "reference" / "cli.html").is_file()
    outside = re.findall(r'(?:src|href)="(https?://[^"]+)"', (tmp_path / "quickstart.html").read_text())
    assert [place for place in outside if "squidfunk" not in place] == []

"""The documentation: its commands exist, its links lead somewhere, its reference is that of the code."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from spftsql.cli import app

CHECKOUT = Path(__file__).parents[2]
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
WRITTEN = [page for page in PAGES if page.parent.name != "reference"]
# In a block of its own, or between backticks.
BLOCK = re.compile(
    r"^[ ]{0,4}```[^\n]*\n(?P<text>.*?)^[ ]{0,4}```|(?:^ {4,}spftsql [^\n]*\n)+", re.MULTILINE | re.DOTALL
)
SHORT = "… "  # marks a mention, which need not be complete
PROGRAMS = ("spftsql", "make", "python", "pip", "ray", "jupyter", "kubectl", "docker", "scp", "sudo", "echo", "serve")
BY_CI = ("make setup", "make demo", "make test", "make lint", "make types", "make format-check", "bash .ci/run")
UNRUN = re.compile("not run by CI", re.IGNORECASE)
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


def sections(page: Path) -> list[tuple[str, str]]:
    """The parts of a page, each with its first part: what is said at the top of a page is about all of it."""
    parts = re.split(r"^(?=#{2,} )", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [(part, parts[0]) for part in parts]


def block_lines(text: str) -> list[str]:
    """The commands in blocks, whatever program they are of; comments with them."""
    lines = [line.strip() for match in BLOCK.finditer(text) for line in match[0].replace("\\\n", " ").splitlines()]
    return [line for line in lines if re.match(rf"({'|'.join(PROGRAMS)})(\s|$)", line.removeprefix(".venv/bin/"))]


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


@cache
def listed() -> frozenset[str]:
    file = CHECKOUT / "tests" / "fixtures" / "docs" / "commands.yaml"
    groups = yaml.safe_load(file.read_text(encoding="utf-8"))["commands"]
    return frozenset(row if isinstance(row, str) else row["command"] for rows in groups.values() for row in rows)


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.stem)
def test_commands_in_the_pages_are_listed_for_a_test_or_said_not_to_be_run(page: Path) -> None:
    unsaid = []
    for part, top in sections(page):
        for line in block_lines(part):
            command = re.sub(r"\s+#\s.*", "", line)
            said = UNRUN.search(part) or UNRUN.search(top) or command in listed()
            if not said and not any(command == known or command.startswith(f"{known} ") for known in BY_CI):
                unsaid.append(command)
    assert unsaid == [], "list it in tests/fixtures/docs/commands.yaml, or say `not run by CI` in its section"


def test_every_listed_command_is_on_a_page() -> None:
    written = {
        re.sub(r"\s+#\s.*", "", line) for page in WRITTEN for part, _ in sections(page) for line in block_lines(part)
    }
    assert listed() - written == set()


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.stem)
def test_files_that_the_pages_name_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = {name for name in re.findall(r"`((?:cluster|jobs|benchmarks|lock|tests)/[\w./-]+)`", text)}
    links = {link for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)}
    written = {name for name in named if name.endswith(".jsonl")}  # by a benchmark that has yet to be run
    assert [name for name in named - written if not (CHECKOUT / name).exists()] == []
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_reference_is_that_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CHECKOUT / "docs"))
    import reference

    advice = "the code has changed: run `make reference`"
    pages = CHECKOUT / "docs" / "reference"
    assert (pages / "cli.md").read_text(encoding="utf-8") == reference.cli_page(), advice
    assert (pages / "config.md").read_text(encoding="utf-8") == reference.config_page(), advice


def test_the_plot_is_that_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CHECKOUT / "docs"))
    import plots

    points = plots.measured(plots.RESULTS.read_text(encoding="utf-8"))
    assert len(points) >= 3
    assert plots.TARGET.read_text(encoding="utf-8") == plots.scaling_svg(points), "run `make reference`"


def test_recipes_in_the_pages_are_valid() -> None:
    from spftsql.recipes import validate

    text = (CHECKOUT / "docs" / "own-database.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert validate(yaml.safe_load(recipe), where="own-database.md").name == "sales"


@pytest.mark.long
def test_the_site_can_be_built(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "reference" / "cli.html").is_file()
    outside = re.findall(r'(?:src|href)="(https?://[^"]+)"', (tmp_path / "quickstart.html").read_text())
    assert [place for place in outside if "squidfunk" not in place] == []


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_tour_runs_from_top_to_bottom() -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    tour = nbformat.read(CHECKOUT / "docs" / "tour.ipynb", as_version=4)
    nbclient.NotebookClient(tour, timeout=600, kernel_name="python3").execute()
    said = "".join(str(output.get("text", "")) for cell in tour.cells for output in cell.get("outputs", ()))
    for expected in ("equal", "different", "refused", "+ VBI-FT", "SELECT COUNT(*)"):
        assert expected in said

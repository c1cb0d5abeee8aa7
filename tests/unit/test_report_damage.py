"""A run directory that lost files or has damaged ones: what is left is shown, and what to do about the rest is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from spftsql.cli import main
from spftsql.reporting.report_page import report_page
from spftsql.reporting.run_record import read_run
from spftsql.reporting.status import status_tree
from tests.commands import command
from tests.made_run import make_run


def one(root: Path, pattern: str) -> Path:
    (found,) = root.glob(pattern)
    return found


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def scribble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8 : len(content) - 200] = b"\xff" * max(0, len(content) - 208)
    path.write_bytes(bytes(content))


def empty(path: Path) -> None:
    path.write_bytes(b"")


FILES = [
    "stages/verify-round-1-*/requests.parquet",
    "stages/verify-round-1-*/verdicts",
    "stages/generate-round-1-*/requests.parquet",
    "stages/generate-round-1-*/samples",
    "stages/train-round-1-*/vbi-1.parquet",
    "stages/train-play-1-*/spft-a-1.parquet",
    "exams/test.parquet",
    "pairs/round-1.parquet",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made"), 8, 4)


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "demo")


@pytest.mark.parametrize(
    ("pattern", "harm"),
    [*((file, cut) for file in FILES), (FILES[0], scribble), (FILES[1], empty), (FILES[3], scribble)],
)
def test_a_damaged_file_is_named_and_the_rest_is_shown(root: Path, pattern: str, harm: Callable[[Path], None]) -> None:
    path = one(root, pattern)
    harm(path)
    text = report_page(read_run(root))
    named = path.relative_to(root).as_posix()
    assert f"Missing: {named} cannot be read" in text
    what = "remove that stage&#39;s folder and run the recipe again" if "stages" in pattern else "run the recipe again"
    assert what in text
    assert "method spft-a-1" in text and text.count("cannot be read") == 1


@pytest.mark.parametrize("stage", ["verify-round-1", "generate-round-1", "train-round-1", "verify-play-1"])
def test_a_stage_that_is_gone_is_named_and_the_rest_is_shown(root: Path, stage: str) -> None:
    path = one(root, f"stages/{stage}-*")
    shutil.rmtree(path)
    text = report_page(read_run(root))
    assert f"Missing: stages/{path.name} is gone, and what it made is left out" in text
    assert "method spft-a-1" in text


@pytest.mark.parametrize("harm", [remove, cut])
@pytest.mark.parametrize("pattern", FILES[:4])
def test_the_status_goes_on_and_says_so(
    root: Path, pattern: str, harm: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    path = one(root, pattern)
    harm(path)
    named = path.relative_to(root).as_posix()
    tree = status_tree(read_run(root))
    assert [line.partition(":")[0] for line in tree["damaged"]] == [f"{named} cannot be read"]
    code, out = command(["status", str(root)], capsys)
    assert code == 0 and f"{named} cannot be read" in " ".join(out.split())


def test_a_page_of_what_is_left_when_all_stages_are_gone(root: Path) -> None:
    for folder in ("stages", "exams", "pairs"):
        shutil.rmtree(root / folder)
    text = report_page(read_run(root))
    assert "method spft-a-1" in text and text.count("is gone, and what it made is left out") == 7


def test_the_command_ends_well(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one(root, "stages/verify-round-1-*/requests.parquet").unlink()
    code, out = command(["report", str(root)], capsys)
    assert code == 0 and "The report is in" in out


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{name: [", "config.yaml is not valid YAML"),
        ("", "config.yaml is empty or not a mapping"),
        ("- 1\n", "config.yaml is empty or not a mapping"),
        ("name: demo\nnonsense: 1\n", "nonsense"),
    ],
)
@pytest.mark.parametrize("name", ["evaluate", "export"])
def test_a_damaged_configuration_ends_in_one_line(
    root: Path, name: str, content: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "config.yaml").write_text(content)
    with pytest.MonkeyPatch.context() as patch:
        more = {"evaluate": ["--benchmark", "jsonl", "--root", str(questions(root.parent))], "export": []}[name]
        patch.setattr("sys.argv", ["spftsql", name, str(root), *more])
        with pytest.raises(SystemExit) as ended:
            main()
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2 and "Traceback" not in said
    assert complaint in said
    if "nonsense" not in content:
        assert "run the recipe again, which writes it anew" in said


def questions(folder: Path) -> Path:
    row = {"db_id": "towns", "question": "How many?", "sql": "SELECT 1"}
    (folder / "test.jsonl").write_text(json.dumps(row) + "\n")
    return folder

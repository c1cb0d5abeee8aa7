"""`spftsql score` as a command: what it prints and writes, its exit codes, and what it must not import."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from spftsql.cli import main
from spftsql.evaluation import threads
from spftsql.records import Verdict, VerificationRequest
from spftsql.verification.worker import Verifier

SPIDER_ROWS = [
    {"db_id": "towns", "question": f"cities above {n}", "query": f"SELECT name FROM city WHERE population > {n}"}
    for n in (1, 1000, 500_000)
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Spider's test layout."""
    folder = tmp_path / "spider"
    database = folder / "test_database" / "towns" / "towns.sqlite"
    database.parent.mkdir(parents=True)
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript(
            "CREATE TABLE city (name TEXT, population INTEGER);"
            "INSERT INTO city VALUES ('Oslo', 700000), ('Bergen', 290000), ('Å', 1);"
        )
    (folder / "test.json").write_text(json.dumps(SPIDER_ROWS))
    (folder / "test_gold.sql").write_text("".join(f"{row['query']}\ttowns\n" for row in SPIDER_ROWS))
    (tmp_path / "predictions.sql").write_text(
        "SELECT name FROM city WHERE population >= 2\nSELECT mayor FROM city\nSELECT '<script>'\n"
    )
    (tmp_path / "other.json").write_text(json.dumps({str(i): row["query"] for i, row in enumerate(SPIDER_ROWS)}))
    return tmp_path


def arguments(root: Path, *more: str) -> list[str]:
    given = ["--benchmark", "spider", "--root", str(root / "spider"), "--predictions", str(root / "predictions.sql")]
    return ["score", *given, *more]


def run(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["spftsql", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_everything_at_once(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: root / f"out.{name}" for name in ("json", "markdown", "html")}
    options = [f"--{name}={path}" for name, path in files.items()]
    options += ["--against", str(root / "other.json"), "--metrics", "exact-match, soft-f1", "--workers", "1"]
    code, out, error = run(arguments(root, *options), monkeypatch, capsys)
    assert (code, "Traceback" in error) == (0, False)
    assert "execution accuracy 0.3333 (1 of 3" in out
    assert "split test" in out
    tree = json.loads(files["json"].read_text())
    assert [item["verdict"] for item in tree["items"]] == ["equal", "error", "different"]
    assert (tree["ceiling"], tree["against"]["accuracy"], tree["pairing"]) == (1.0, 1.0, "by position (lines)")
    assert tree["split"] == "test"
    assert "| equal | 1 |" in files["markdown"].read_text()
    page = files["html"].read_text()
    assert "SELECT &#39;&lt;script&gt;&#39;" in page and "<td>Bergen</td>" in page and "cities above 1000" in page


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--split", "dev"], "dev.json or Spider-DK.json or spider-realistic.json is missing"),
        (["--html", "none/page.html"], "--html none/page.html: the folder"),
        (["--markdown", "."], "--markdown . is a folder; name a file"),
        (["--metrics", "bleu"], "unknown metric bleu"),
        (["--policy", "best"], "unknown policy best"),
        (["--timeout", "0"], "--timeout 0: give the seconds for one statement"),
        (["--databases", "none"], "--databases none is neither a folder nor a YAML file"),
        (["--db", "towns"], "--db takes NAME=URL"),
        (["--against", "none.sql"], "predictions file none.sql does not exist"),
    ],
)
def test_mistakes_end_in_one_line(
    root: Path,
    options: list[str],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(root)
    code, _, error = run(arguments(root, *options), monkeypatch, capsys)
    assert code == 2
    assert error.strip().splitlines() == [line for line in error.splitlines() if complaint in line]


def test_a_fault_keeps_what_was_verified(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing(Verifier):
        def verify(self, requests: list[VerificationRequest], *more: object) -> list[Verdict]:  # type: ignore[override]
            found = super().verify(requests)
            lost = Verdict("0 1", "towns", "unverifiable", "fault", 0.0, 0, False, "", "", fault="the disk is full")
            return [lost if verdict.id == "0 1" else verdict for verdict in found]

    out = root / "out.json"
    monkeypatch.setattr(threads, "Verifier", Failing)
    code, _, error = run(arguments(root, "--json", str(out), "--metrics", "soft-f1"), monkeypatch, capsys)
    assert code == 4
    assert "1 question could not be verified (question 1: the disk is full); the verdicts on the other 2" in error
    assert not out.exists()
    tree = json.loads((root / "out.json.partial").read_text())
    assert (tree["accuracy"], tree["complete"]) == (None, False)
    assert [(item["index"], item["verdict"]) for item in tree["items"]] == [(0, "equal"), (2, "different")]
    assert tree["faults"] == [{"index": 1, "fault": "the disk is full"}]
    monkeypatch.undo()
    assert run(arguments(root, "--json", str(out)), monkeypatch, capsys)[0] == 0
    assert out.exists() and not (root / "out.json.partial").exists()


def test_a_database_that_is_gone_is_a_fault_and_no_verdict(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = root / "spider" / "test_database" / "towns" / "towns.sqlite-wal"
    log.write_bytes(b"unfinished")
    # Another test's statements on the same content, where they were slow, would be known from the cache.
    code, _, error = run(arguments(root, "--no-cache"), monkeypatch, capsys)
    assert code == 4
    assert "3 questions could not be verified" in error and "write-ahead log" in error


def test_scoring_imports_neither_ray_nor_torch_nor_anything_else_that_is_heavy(root: Path) -> None:
    code = (
        "import sys, spftsql.cli\n"
        f"sys.argv = ['spftsql', *{arguments(root, '--metrics', 'exact-match,soft-f1')!r}]\n"
        "try: spftsql.cli.main()\n"
        "except SystemExit as ended: assert not ended.code, ended.code\n"
        "heavy = ('ray', 'torch', 'transformers', 'vllm', 'pandas', 'pyarrow', 'sqlalchemy', 'numpy')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"

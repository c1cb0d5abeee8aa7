"""The wheel holds everything that runs: built here, installed elsewhere, used from a third place."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.long]

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, that sees the packages of this one, but not its spftsql."""
    root = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(root)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(CHECKOUT)], check=True)
    (wheel,) = root.glob("spftsql-*.whl")
    folder = root / "venv"
    venv.create(folder, with_pip=False)
    install = ["--python", str(folder), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    # A folder that a .pth file adds to the path is searched last, and no .pth files in it are read, thus not
    # that of the editable install.
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def run(environment: Path, cwd: Path, *command: str) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env["PATH"] = os.pathsep.join([str(environment / "bin"), str(Path(sys.executable).parent), env["PATH"]])
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_what_is_imported_is_the_wheel(environment: Path, tmp_path: Path) -> None:
    code = "import spftsql, jobs, serve, cluster; print(*spftsql.__path__, *jobs.__path__, *serve.__path__)"
    for place in run(environment, tmp_path, "python", "-c", code).split():
        assert Path(place).is_relative_to(environment)


def test_every_file_of_the_packages_is_in_the_wheel(environment: Path) -> None:
    (site,) = environment.glob("lib/python*/site-packages")
    packages = ["spftsql", "jobs", "serve", "cluster"]
    listing = subprocess.run(["git", "ls-files", *packages], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert [name for name in listing.stdout.splitlines() if not (site / name).exists()] == []
    assert {path.name for path in (site / "spftsql" / "lock").iterdir()} >= {"cpu.txt", "gpu.txt"}


def test_doctor(environment: Path, tmp_path: Path) -> None:
    checks = json.loads(run(environment, tmp_path, "spftsql", "doctor", "--json"))
    packages = next(check for check in checks if check["name"] == "packages")
    assert packages["ok"], packages
    assert "as locked for" in run(environment, tmp_path, "spftsql", "doctor")


def test_score(environment: Path, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "shop.sqlite") as connection:
        connection.executescript("CREATE TABLE item (name TEXT, price REAL);")
        connection.executemany("INSERT INTO item VALUES (?, ?)", [("a", 1), ("b", 2)])
    gold = ["SELECT name FROM item WHERE price > 1", "SELECT COUNT(*) FROM item"]
    rows = [json.dumps({"db_id": "shop", "question": "?", "sql": sql}) for sql in gold]
    (tmp_path / "test.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "predictions.sql").write_text("SELECT name FROM item WHERE price = 2\nSELECT 3\n")
    where = [
        "--benchmark",
        "jsonl",
        "--root",
        ".",
        "--predictions",
        "predictions.sql",
        "--json",
        "scores.json",
    ]
    assert "--predictions" in run(environment, tmp_path, "spftsql", "score", "--help")
    run(environment, tmp_path, "spftsql", "score", *where)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["accuracy"] == 0.5
    assert [item["verdict"] for item in scores["items"]] == ["equal", "different"]


def test_recipes_are_found_by_name(environment: Path, tmp_path: Path) -> None:
    assert "demo database" in run(environment, tmp_path, "spftsql", "run", "demo", "--dry-run")
    assert "deepseek" in run(environment, tmp_path, "spftsql", "config", "show", "bird-deepseek-coder-7b")


def test_dry_run_of_geoquery(environment: Path, tmp_path: Path, data_root: Path) -> None:
    data = f"--set=data.root={data_root / 'geoquery'}"
    assert "279" in run(environment, tmp_path, "spftsql", "run", "geoquery", "--dry-run", data)


def test_serve_help(environment: Path, tmp_path: Path) -> None:
    assert "--db" in run(environment, tmp_path, "spftsql", "serve", "--help")

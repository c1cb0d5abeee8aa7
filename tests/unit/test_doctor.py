"""The doctor finds what is wrong with an environment and says how to mend it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from spftsql import doctor

LOCK = Path("cpu.txt")


def test_an_environment_as_locked_has_nothing_to_mend() -> None:
    (summary,) = doctor.package_checks({"ray": "2.60.0", "rich": "15.0.0"}, {"ray": "2.60.0", "rich": "15.0.0"}, LOCK)
    assert summary.ok
    assert summary.repair == ""


@pytest.mark.parametrize(
    ("installed", "ok", "required"),
    [
        ({"torch": "2.13.0+cpu", "rich": "15.0.0"}, True, False),  # a build of the locked version
        ({"torch": "2.13.0", "rich": "15.0.0"}, True, False),
        ({"torch": "2.14.0", "rich": "15.0.0"}, False, True),  # breaks vLLM
        ({"torch": "2.13.0", "rich": "14.0.0"}, False, False),  # differs, harmless
        ({"torch": "2.13.0"}, False, True),
    ],
)
def test_packages_are_compared_with_the_lock(installed: dict[str, str], ok: bool, required: bool) -> None:
    checks = doctor.package_checks({"torch": "2.13.0+cpu", "rich": "15.0.0"}, installed, LOCK)
    assert all(check.ok for check in checks) is ok
    assert doctor.failed(checks) is required
    assert all(check.repair for check in checks if not check.ok)


def test_repair_of_a_package_installs_the_pin_and_nothing_else() -> None:
    _, check = doctor.package_checks({"rich": "15.0.0"}, {}, LOCK)
    assert check.repair.endswith("-m pip install --no-deps rich==15.0.0")


def test_extension_is_found_where_the_variable_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))

    def extension() -> doctor.Check:
        return next(check for check in doctor.diagnose() if check.name == "DeepSpeed extension")

    assert "not built" in extension().detail
    folder = tmp_path / doctor.EXTENSION
    folder.mkdir()
    (folder / f"{doctor.EXTENSION}.so").touch()
    assert extension().ok
    (folder / "lock").touch()
    assert not extension().ok
    assert extension().repair == f"rm {folder / 'lock'}"


def test_this_environment_is_complete() -> None:
    checks = doctor.diagnose()
    assert not doctor.failed(checks), [check for check in checks if not check.ok]
    console = Console(width=120)
    with console.capture() as capture:
        console.print(doctor.render(checks))
    assert "as locked for" in capture.get()


def test_doctor_imports_nothing_that_it_examines() -> None:
    code = (
        "import sys; from spftsql import doctor; doctor.diagnose();"
        "print(*({'torch', 'ray', 'vllm', 'deepspeed', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

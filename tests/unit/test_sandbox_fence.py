"""The layers that depend on the kernel: what they forbid, and that nothing breaks where they are not there."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from spftsql import doctor
from spftsql.config import SandboxConfig
from spftsql.errors import Fault
from spftsql.sandbox import fence, process
from spftsql.sandbox.execute import Sandbox
from spftsql.sandbox.folders import Folders
from spftsql.sandbox.process import ChildProcess
from spftsql.sandbox.result import Limits
from tests.hostile import make_sqlite_database
from tests.unguarded import guards_off

LIMITS = Limits(**SandboxConfig().model_dump())
FENCED = """
import ctypes, json, os, socket, sys
from spftsql.sandbox import fence
from spftsql.sandbox.result import Limits

readable, version = json.loads(sys.argv[1]), int(sys.argv[2])
if version:  # as on an older kernel
    call = fence._call
    fence._call = lambda number, *given: call(number, *given) if given[0] is not None else version
off = {"working folder", "PDEATHSIG", "CORE", "FSIZE", "NOFILE", "AS", "network"} | set(sys.argv[3:])
layers = fence.raise_fence(os.getppid(), Limits(1, 1, 1, 1, 1 << 20, False), readable, frozenset(off))

def execute():
    if os.spawnv(os.P_WAIT, "/bin/true", ["true"]) != 0:
        raise PermissionError(13, "as the child of the fork found")

def attempt(action):
    try:
        action()
        return "done"
    except OSError as error:
        return "denied" if error.errno in (13, 18) else str(error)

abstract = socket.socket(socket.AF_UNIX)
said = {
    "read inside": attempt(lambda: open("inside/file").read()),
    "read outside": attempt(lambda: open("outside").read()),
    "list outside": attempt(lambda: os.listdir(".")),
    "write": attempt(lambda: open("inside/file", "r+")),
    "append outside": attempt(lambda: open("outside", "a")),
    "make": attempt(lambda: open("inside/new", "x")),
    "make a folder": attempt(lambda: os.mkdir("inside/folder")),
    "make a link": attempt(lambda: os.symlink("a", "inside/link")),
    "make a hard link": attempt(lambda: os.link("inside/file", "hard")),
    "make a pipe": attempt(lambda: os.mkfifo("inside/pipe")),
    "make a socket": attempt(lambda: socket.socket(socket.AF_UNIX).bind("inside/socket")),
    "rename": attempt(lambda: os.rename("inside/file", "inside/renamed")),
    "remove": attempt(lambda: os.remove("inside/doomed")),
    "remove a folder": attempt(lambda: os.rmdir("doomed")),
    "truncate": attempt(lambda: os.truncate("outside", 1)),
    "execute": attempt(execute),
    "read Python": attempt(lambda: open(os.__file__).read()),
    "time zone": attempt(lambda: open("/etc/localtime").read() if os.path.exists("/etc/localtime") else None),
    "random numbers": attempt(lambda: open("/dev/urandom", "rb").read(1)),
    "abstract socket": attempt(lambda: abstract.connect(b"\\0" + str(os.getppid()).encode())),
    "signal": attempt(lambda: os.kill(os.getppid(), 0)),
}
print(json.dumps([layers["Landlock"], said]))
"""
ALLOWED = {"read inside", "read Python", "time zone", "random numbers"}


def layer(name: str) -> None:
    """Skips the test where this kernel does not have the layer."""
    child = ChildProcess("sqlite", LIMITS)
    child.kill()
    if child.layers[name]:
        pytest.skip(f"{name}: {child.layers[name]}")


def attempts(folder: Path, readable: list[str] | None, version: int, *off: str) -> dict[str, str]:
    (folder / "inside").mkdir()
    (folder / "doomed").mkdir()
    for name in ("inside/file", "inside/doomed", "outside"):
        (folder / name).write_text("text")
    command = [sys.executable, "-c", FENCED, json.dumps(readable), str(version), *off]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{os.getpid()}")
        server.listen()
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    reason, said = json.loads(done.stdout)
    assert reason == ("left out" if "Landlock" in off else "")
    return dict(said)


def test_landlock_leaves_reading_of_what_was_named(tmp_path: Path) -> None:
    layer("Landlock")
    said = attempts(tmp_path, [str(tmp_path / "inside")], 0)
    newest = fence._call(fence._CREATE_RULESET, None, 0, fence._VERSION)
    late = {"truncate": 3, "abstract socket": 6, "signal": 6}
    for action, result in said.items():
        known = action not in ALLOWED and late.get(action, 1) <= newest
        expected = ("denied", str(PermissionError(errno.EPERM, "Operation not permitted"))) if known else ("done",)
        assert result in expected, action


def test_everything_is_possible_without_landlock(tmp_path: Path) -> None:
    assert set(attempts(tmp_path, [], 0, "Landlock").values()) == {"done"}


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5])
def test_older_landlocks_do_what_they_can(tmp_path: Path, version: int) -> None:
    layer("Landlock")
    said = attempts(tmp_path, [str(tmp_path / "inside")], version)
    possible = {action for action, result in said.items() if result == "done"}
    assert possible == ALLOWED | {"abstract socket", "signal"} | ({"truncate"} if version < 3 else set())


def test_landlock_for_servers_forbids_writing_only(tmp_path: Path) -> None:
    layer("Landlock")
    said = attempts(tmp_path, None, 5)
    possible = {action for action, result in said.items() if result == "done"}
    assert possible == ALLOWED | {"read outside", "list outside", "abstract socket", "signal"}


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSYS, "the kernel does not have it"),
        (errno.EOPNOTSUPP, "switched off in the kernel"),
        (errno.EPERM, "not permitted here"),
        (errno.EINVAL, "Invalid argument"),
    ],
)
def test_refusing_kernels_are_told_and_go_on(monkeypatch: pytest.MonkeyPatch, number: int, reason: str) -> None:
    def refuse(*arguments: object) -> int:
        ctypes.set_errno(number)
        return -1

    class Libc:
        unshare = staticmethod(refuse)

    monkeypatch.setattr(fence, "_call", refuse)
    monkeypatch.setattr(fence, "_libc", Libc)
    assert fence._landlock([]) == f"landlock_create_ruleset: {reason}"
    assert fence._leave_network() == f"unshare: {reason}"


def test_rights_by_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses a ruleset with a right that it does not know, so what is asked depends on its version."""
    asked: dict[int, tuple[int, int, int]] = {}

    def fake(number: int, *arguments: object) -> int:
        if arguments[0] is None:
            return version
        assert isinstance(arguments[0], bytes)
        asked[version] = struct.unpack("=QQQ", arguments[0])
        ctypes.set_errno(errno.EPERM)
        return -1

    monkeypatch.setattr(fence, "_call", fake)
    for version in range(1, 9):  # noqa: B007 (`fake` answers with it)
        fence._landlock([])
    # The values of linux/landlock.h: 13 rights of files, then REFER, TRUNCATE, IOCTL_DEV; TCP; scopes.
    assert asked == {
        1: (0x1FFF, 0, 0),
        2: (0x3FFF, 0, 0),
        3: (0x7FFF, 0, 0),
        4: (0x7FFF, 3, 0),
        5: (0xFFFF, 3, 0),
        6: (0xFFFF, 3, 3),
        7: (0xFFFF, 3, 3),
        8: (0xFFFF, 3, 3),
    }


def test_queries_run_where_no_layer_is_there(tmp_path: Path) -> None:
    database = make_sqlite_database(tmp_path)
    with guards_off({"Landlock", "network"}), Sandbox(SandboxConfig()) as sandbox:
        first, second = sandbox.execute(database, ["SELECT count(*) FROM people", "DELETE FROM people"])
        other = tmp_path / "elsewhere"
        other.mkdir()
        pid = sandbox.pid
        (third,) = sandbox.execute(make_sqlite_database(other), ["SELECT 1"])
        assert sandbox.pid == pid  # nothing holds it to a folder, so it need not be replaced
    assert (first.rows, second.reason, third.rows) == ([(2000,)], "refused: DELETE people", [(1,)])


USER = """
import ctypes, os, sys
from pathlib import Path
from spftsql.sandbox import fence
from spftsql.sandbox.result import Limits
folder = Path(sys.argv[1])
if os.geteuid() == 0:
    os.chown(folder, 65534, 65534)
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
(folder / "private").write_text("content")
(folder / "private").chmod(0o600)
off = {"working folder", "AS"}
layers = fence.raise_fence(os.getppid(), Limits(1, 1, 1, 1, 512, False), [str(folder)], frozenset(off))
signal = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(signal))
print(layers["network"] or "gone", (folder / "private").read_text(), signal.value)
"""


def test_a_user_namespace_keeps_the_users_own_files_readable() -> None:
    layer("network")
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", USER, folder]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    network, content, death_signal = done.stdout.rsplit(maxsplit=2)
    if network != "gone":
        pytest.skip(f"network: {network}")
    assert (content, death_signal) == ("content", "9")


def test_folders_of_databases_become_readable_as_they_are_asked_for(tmp_path: Path) -> None:
    files = [tmp_path / "database" / name / f"{name}.sqlite" for name in "abc"]
    flat = [tmp_path / "flat" / "one.db", tmp_path / "flat" / "two.db"]
    for file in (*files, *flat, tmp_path / "database" / "d" / "no"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    folders = Folders()

    def known() -> set[str]:
        return {folder.path for folder in folders.known}

    folders.expect([files[0], tmp_path / "not" / "there.sqlite"])
    assert known() == {str(files[0].parent)}
    folders.of(files[1])  # the second of many databases side by side
    assert known() == {str(file.parent) for file in files}
    assert folders.of(flat[0]) == folders.of(flat[1])
    assert len(known()) == 4
    link = tmp_path / "link.sqlite"
    link.symlink_to(files[2])
    assert folders.of(link) == folders.of(files[2])
    assert folders.of(tmp_path / "not" / "there.sqlite") is None


def test_a_folder_that_is_made_anew_is_readable_again(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with Sandbox(SandboxConfig()) as sandbox:
        for _ in range(2):
            folder.mkdir()
            assert sandbox.execute(make_sqlite_database(folder), ["SELECT count(*) FROM people"])[0].rows == [(2000,)]
            shutil.rmtree(folder)


def test_a_child_is_replaced_for_a_folder_that_it_may_not_read(tmp_path: Path) -> None:
    layer("Landlock")
    places = []
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        places.append(make_sqlite_database(tmp_path / name))
    with Sandbox(SandboxConfig()) as sandbox:
        pids = []
        for place in (*places, *places):
            assert sandbox.execute(place, ["SELECT count(*) FROM people"])[0].rows == [(2000,)]
            pids.append(sandbox.pid)
    assert len(set(pids)) == 2  # one for the first, one for all of them


def test_doctor_reports_the_layers() -> None:
    def rows() -> dict[str, doctor.Check]:
        return {check.name: check for check in doctor.diagnose() if check.name.startswith("sandbox")}

    child = ChildProcess("sqlite", LIMITS)
    child.kill()
    for name, reason in child.layers.items():
        check = rows()[f"sandbox: {name}"]
        assert check.ok is (not reason)
        assert check.detail.startswith("on" if not reason else f"not available ({reason})")
    with guards_off({"Landlock"}):
        assert rows()["sandbox: Landlock"].detail.startswith("not available (left out)")
        assert not doctor.failed(list(rows().values()))


def test_doctor_says_when_the_sandbox_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_COMMAND", (sys.executable, "-c", "import sys; sys.exit('no such library')"))
    (check,) = [check for check in doctor.diagnose() if check.name.startswith("sandbox")]
    assert not check.ok
    assert check.required
    assert "no such library" in check.detail
    with pytest.raises(Fault, match="no such library"):
        ChildProcess("sqlite", LIMITS)

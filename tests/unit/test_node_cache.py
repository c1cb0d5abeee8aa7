"""Copies of databases by content: made once, whole or not at all, bounded, never removed while somebody uses them."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spftsql.config import SandboxConfig, VerificationConfig
from spftsql.databases.files import file_hash
from spftsql.databases.places import Source
from spftsql.errors import Fault
from spftsql.records import VerificationRequest
from spftsql.verification.node_cache import NodeCache, is_remote, open_node_cache
from spftsql.verification.worker import Verifier
from tests.small_disk import small_disk

LIMITS = SandboxConfig(soft_seconds=2, hard_seconds=4)


def write(path: Path, size: int = 10_000) -> str:
    path.write_bytes(os.urandom(size))
    return file_hash(path)


def test_a_copy_is_made_once_and_outlives_the_original(tmp_path: Path) -> None:
    original, folder = tmp_path / "db.sqlite", tmp_path / "cache"
    content = write(original)
    first, second = NodeCache(folder, 1 << 20), NodeCache(folder, 1 << 20)
    copy = first.copy_of(original, content)
    assert copy is not None
    assert copy.parent == folder
    assert file_hash(copy) == content
    assert copy.stat().st_mode & 0o222 == 0
    original.unlink()
    made = copy.stat().st_mtime_ns
    assert second.copy_of(original, content) == copy
    assert first.copy_of(original, content) == copy
    assert copy.stat().st_mtime_ns == made
    with pytest.raises(Fault, match="cannot be opened"):
        first.copy_of(original, "0" * 16)


def test_an_original_of_another_content_is_a_fault_and_leaves_nothing(tmp_path: Path) -> None:
    original, folder = tmp_path / "db.sqlite", tmp_path / "cache"
    content = write(original)
    write(original)
    with pytest.raises(Fault, match="its content changed"):
        NodeCache(folder, 1 << 20).copy_of(original, content)
    assert [path.suffix for path in folder.iterdir()] == [".lock"]


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_copy_that_is_damaged_is_made_again(tmp_path: Path, damage: str) -> None:
    original, folder = tmp_path / "db.sqlite", tmp_path / "cache"
    content = write(original)
    copy = NodeCache(folder, 1 << 20).copy_of(original, content)
    assert copy is not None
    copy.chmod(0o600)
    if damage == "cut":
        os.truncate(copy, 100)
    else:
        copy.write_bytes(os.urandom(10_000))
    assert NodeCache(folder, 1 << 20).copy_of(original, content) == copy
    assert file_hash(copy) == content


def test_the_least_recently_used_goes_first_and_none_that_is_in_use(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    originals = {name: tmp_path / f"{name}.sqlite" for name in "abcde"}
    contents = {name: write(path) for name, path in originals.items()}

    def copy_of(cache: NodeCache, name: str) -> bool:
        time.sleep(0.02)  # so that the times of use differ
        return cache.copy_of(originals[name], contents[name]) is not None

    def there() -> set[str]:
        return {name for name in contents if (folder / f"{contents[name]}.sqlite").exists()}

    cache = NodeCache(folder, 35_000)
    assert all(copy_of(cache, name) for name in "abc")
    other = NodeCache(folder, 35_000)
    assert not copy_of(other, "d")  # all are in use
    assert there() == set("abc")
    cache.close()
    other = NodeCache(folder, 35_000)
    assert copy_of(other, "a")
    assert copy_of(NodeCache(folder, 35_000), "d")
    assert there() == set("acd")
    assert copy_of(NodeCache(folder, 35_000), "e")
    assert there() == set("ade")  # c was the oldest; a is in use
    assert not copy_of(NodeCache(folder, 5_000), "b")


COPIER = """
import sys
from pathlib import Path
from spftsql.verification.node_cache import NodeCache
cache = NodeCache(Path(sys.argv[1]), 1 << 30)
copy = cache.copy_of(Path(sys.argv[2]), sys.argv[3])
print(copy.stat().st_ino, flush=True)
sys.stdin.read()
"""


def test_processes_share_one_copy_though_one_of_them_is_killed(tmp_path: Path) -> None:
    original, folder = tmp_path / "db.sqlite", tmp_path / "cache"
    content = write(original, 60_000_000)
    command = [sys.executable, "-c", COPIER, str(folder), str(original), content]

    def start() -> "subprocess.Popen[str]":
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    killed = start()
    deadline = time.monotonic() + 60
    while not (drafts := list(folder.glob(".*.draft"))) and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert drafts
    others = [start() for _ in range(3)]
    try:
        inodes = set()
        for process in others:
            assert process.stdout
            inodes.add(process.stdout.readline().strip())
        assert len(inodes) == 1 and inodes != {""}
        assert file_hash(folder / f"{content}.sqlite") == content
        write(other := tmp_path / "other.sqlite", 100)
        cache = NodeCache(folder, 1_000)  # wants room, and the copy is in use by the others
        assert cache.copy_of(other, file_hash(other)) is None
    finally:
        for process in others:
            process.communicate("")
    assert NodeCache(folder, 1_000).copy_of(other, file_hash(other)) is not None
    assert not (folder / f"{content}.sqlite").exists()


def database(path: Path) -> Path:
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE t (i); INSERT INTO t VALUES (1), (2)")
    connection.close()
    return path


def verdict(verifier: Verifier, sql: str) -> str:
    (verdict,) = verifier.verify([VerificationRequest("1", "shop", sql, "SELECT 2", "strict")])
    return verdict.fault or verdict.status


def test_a_copied_database_may_change_and_disappear_under_a_run(tmp_path: Path) -> None:
    path = database(tmp_path / "db.sqlite")
    source = Source((str(path),), file_hash(path))
    cache = NodeCache(tmp_path / "cache", 1 << 20)
    with Verifier({"shop": source}, LIMITS, node_cache=cache) as verifier:
        assert verdict(verifier, "SELECT count(*) FROM t") == "equal"
        connection = sqlite3.connect(path)
        connection.executescript("INSERT INTO t VALUES (3)")
        connection.close()
        assert verdict(verifier, "SELECT max(i) FROM t") == "equal"
        path.unlink()
        assert verdict(verifier, "SELECT min(i) + 1 FROM t") == "equal"


def test_a_full_disk_costs_the_copy_and_no_verdict(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = database(tmp_path / "db.sqlite")
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE big AS SELECT randomblob(3000000) AS b")
    connection.commit()
    connection.close()
    with small_disk(tmp_path / "disk", "1m") as disk:
        cache = NodeCache(disk / "cache", 1 << 30)
        with Verifier({"shop": Source((str(path),), file_hash(path))}, LIMITS, node_cache=cache) as verifier:
            assert verdict(verifier, "SELECT count(*) FROM t") == "equal"
            assert verdict(verifier, "SELECT max(i) FROM t") == "equal"
        assert [entry.suffix for entry in (disk / "cache").iterdir()] == [".lock"]
    assert caplog.text.count("is not copied") == 1
    assert "No space left" in caplog.text


def test_what_has_a_log_beside_it_is_not_copied(tmp_path: Path) -> None:
    path = database(tmp_path / "db.sqlite")
    Path(f"{path}-wal").write_bytes(b"x")
    assert NodeCache(tmp_path / "cache", 1 << 20).copy_of(path, file_hash(path)) is None


def test_by_default_only_databases_of_other_machines_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPFTSQL_CACHE", str(tmp_path / "cache"))
    path = database(tmp_path / "db.sqlite")
    assert not is_remote(path)
    cache = open_node_cache(VerificationConfig())
    assert cache is not None
    assert cache.copy_of(path, file_hash(path)) is None
    monkeypatch.setattr("spftsql.verification.node_cache.is_remote", lambda file: file == path)
    cache = open_node_cache(VerificationConfig())
    assert cache is not None
    assert cache.copy_of(path, file_hash(path)) == tmp_path / "cache" / "databases" / f"{file_hash(path)}.sqlite"
    assert open_node_cache(VerificationConfig(node_cache=None)) is None
    cache = open_node_cache(VerificationConfig(node_cache=tmp_path / "mine"))
    assert cache is not None
    assert cache.copy_of(path, file_hash(path)) == tmp_path / "mine" / "databases" / f"{file_hash(path)}.sqlite"


@pytest.mark.parametrize(
    ("kind", "remote"),
    [
        *((kind, False) for kind in ("ext4", "xfs", "overlay", "tmpfs", "fuse.fuse-overlayfs")),
        *((kind, True) for kind in ("nfs4", "cifs", "fuse.sshfs", "lustre", "ceph", "9p")),
    ],
)
def test_mounts_of_other_machines_are_known_by_their_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, remote: bool
) -> None:
    device = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"21 1 0:99 / /elsewhere rw - nfs x rw\n"
        f"22 1 {os.major(device)}:{os.minor(device)} / / rw,relatime shared:1 - {kind} host:/x rw\n"
    )
    monkeypatch.setattr("spftsql.node_cache._MOUNTS", mounts)
    assert is_remote(tmp_path) is remote

"""The test aid that kills: as often as it says, in the order of its seed, of the kinds that are there."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.killing import FINDERS, Killer, descendants

FAMILY = """
import subprocess, sys, time
children = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in range(4)]
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def family() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    for pid in descendants(process.pid):
        subprocess.run(["kill", "-9", str(pid)], check=False)
    process.kill()
    process.wait()


def alive(root: int) -> list[int]:
    from pathlib import Path

    found = []
    for pid in descendants(root):
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        found += [pid] if state != "Z" else []
    return found


def test_it_kills_what_is_there_and_counts_it(family: subprocess.Popen[str]) -> None:
    finders = {**FINDERS, "child": alive, "actor": lambda root: []}
    killer = Killer(family.pid, ["child", "actor"], 0.01, seed=1, finders=finders)
    assert len(alive(family.pid)) == 4
    with killer:
        deadline = time.monotonic() + 30
        while alive(family.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert alive(family.pid) == [] and killer.killed == {"child": 4}
    assert killer.kill_one(random.Random(0)) is None
    assert Killer(family.pid, ["driver"], 1, 0).kill_one(random.Random(0)) == "driver"
    assert family.wait() == -signal.SIGKILL


def test_the_seed_gives_the_order() -> None:
    def order(seed: int) -> list[str | None]:
        finders = {kind: (lambda root, kind=kind: [kind]) for kind in FINDERS}
        chance = random.Random(seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("os.kill", lambda pid, number: None)
            killer = Killer(0, list(FINDERS), 1, seed, finders=finders)  # type: ignore[arg-type]
            return [killer.kill_one(chance) for _ in range(20)]

    assert order(1) == order(1) != order(2)
    assert set(order(1)) == set(FINDERS)


def test_kinds_that_are_there_come_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.killing.os.kill", lambda pid, number: None)
    finders = {kind: (lambda root: [1]) for kind in FINDERS}
    killer = Killer(0, ["child", "actor", "driver"], 1, 0, finders=finders, killed={"child": 2})
    kinds = [killer.kill_one(random.Random(7)) for _ in range(4)]
    assert sorted(map(str, kinds)) == ["actor", "actor", "driver", "driver"] and killer.killed["child"] == 2

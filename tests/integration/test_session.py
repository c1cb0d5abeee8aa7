"""The Ray session of a process, started by a thread that is soon over."""

from __future__ import annotations

import subprocess
import sys

import pytest

STARTED_ELSEWHERE = """
import threading, time
from spftsql.cluster.session import end_session, ensure_session
from spftsql.recipes import resolve

thread = threading.Thread(target=ensure_session, args=(resolve("demo", ["cluster.cpus=2"]),))
thread.start()
thread.join()
import ray
time.sleep(1)
print(ray.get(ray.remote(lambda: "alive").remote(), timeout=60))
end_session()
"""


NODE_LOST = """
import os, signal, time
from spftsql.cluster.session import ensure_session
from spftsql.recipes import resolve
from tests.killing import FINDERS

ensure_session(resolve("demo", ["cluster.cpus=2"]))
import ray
for raylet in FINDERS["raylet"](os.getpid()):
    os.kill(raylet, signal.SIGKILL)
time.sleep(0.5)
ray.put(b"x" * 10**7)
time.sleep(60)
"""

ONE_AFTER_ANOTHER = """
from spftsql.cluster.session import end_session, ensure_session
from spftsql.recipes import resolve
from spftsql.serving.endpoint import start_serve
from ray import serve

config = resolve("demo", ["cluster.cpus=2", "serve.port=0"])
for _ in range(2):
    ensure_session(config)
    start_serve(config)
    print(len(serve.status().applications))
    end_session()
"""

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


def test_a_process_that_ray_ends_with_its_node_has_said_so() -> None:
    """Ray ends whoever needs the object store of a node that is gone, and says nothing."""
    done = subprocess.run([sys.executable, "-c", NODE_LOST], capture_output=True, text=True, check=False)
    lines = done.stderr.splitlines()
    assert done.returncode and len(lines) == 1 and "Ray node at this machine is gone; what is finished" in lines[0]


def test_a_session_outlives_the_thread_that_started_it() -> None:
    """A resumed run may come to its first statements within the pool of threads that has them executed."""
    done = subprocess.run([sys.executable, "-c", STARTED_ELSEWHERE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_a_second_session_of_a_process_does_not_ask_serve_of_the_first() -> None:
    done = subprocess.run([sys.executable, "-c", ONE_AFTER_ANOTHER], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "0\n0\n"), done.stderr

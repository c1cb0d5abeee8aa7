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


@pytest.mark.integration
@pytest.mark.timeout(120)
def test_a_session_outlives_the_thread_that_started_it() -> None:
    """A resumed run may come to its first statements within the pool of threads that has them executed."""
    done = subprocess.run([sys.executable, "-c", STARTED_ELSEWHERE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr

"""`python -m tests.training_driver JOBS STEP`: a driver of trainings on Ray; at STEP of the first it kills itself.

JOBS is a pickled (jobs, configuration, file of metrics). With STEP 0 it lives, and prints the first step that it heard.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from pathlib import Path

from spftsql.cluster.session import end_session, ensure_session
from spftsql.training.distributed import train_ray

if __name__ == "__main__":
    jobs, config, metrics = pickle.loads(Path(sys.argv[1]).read_bytes())
    last, heard = int(sys.argv[2]), list[int]()

    def progress(job: str, step: int, steps: int) -> None:
        heard.append(step)
        if step == last:
            os.kill(os.getpid(), signal.SIGKILL)

    ensure_session(config)
    train_ray(jobs, config, metrics, progress)
    end_session()
    print(heard[0])

"""What is said of a failure within Ray."""

import pytest

from spftsql.causes import cause_of

FULL_DISK = """ray::MapWorker(MapBatches(RowVerifier)).submit() (pid=1, ip=192.0.2.2)
  File "stage.py", line 121, in __call__
    write_records(target, verdicts, Verdict)
OSError: [Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device

The above exception was the direct cause of the following exception:

ray.exceptions.UserCodeException: UDF failed to process a data block.
Failed to apply UDF transform after 1/1 attempts (total backoff 0.0s).
To change retry attempts, backoff, or which errors are retried, configure `ray.data.DataContext.get_current()`."""
CHAINED = """ValueError: first

During handling of the above exception, another exception occurred:

spftsql.errors.Fault: the engine was lost"""


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (FULL_DISK, "OSError: [Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
        (CHAINED, "Fault: the engine was lost"),
        ("The actor died unexpectedly before finishing this task.\n\tclass_name: Engine", "class_name: Engine"),
        ("", "RuntimeError"),
    ],
)
def test_the_cause_and_not_what_is_around_it(text: str, cause: str) -> None:
    assert cause_of(RuntimeError(text)) == cause

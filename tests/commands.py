"""`spftsql` with some arguments, in this process."""

from __future__ import annotations

import pytest

from spftsql.cli import main


def command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Runs the command to its end; returns its exit code and what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["spftsql", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0), capsys.readouterr().out

"""What a stage says of itself, a line a minute: how far it is, how long it will take, or that it stands still."""

from __future__ import annotations

import io
import time

from rich.console import Console

from spftsql.progress import Pace, Reporter


def test_a_line_says_what_is_done_how_fast_and_how_long() -> None:
    pace = Pace(0.0)
    assert pace.line(60.0) == "nothing done after 60 s: workers start, or wait for room (`ray status`)"
    pace.advance(70.0, 1000, 9000)  # left by an interrupted run: not done now
    pace.advance(120.0, 2000, 9000)
    assert pace.line(120.0, "requests") == ("2000 of 9000 requests (22%), 20 requests a second, about 6 min left")
    pace.advance(180.0, 8000, 9000)
    assert pace.line(180.0) == "8000 of 9000 (89%), 100 a second, about 10 s left"  # of the last minute
    assert "nothing new for 60 s: its workers may be stuck" in pace.line(240.0)
    assert "nothing new for 2 min" in pace.line(300.0)
    pace.advance(301.0, 9000, 9000)
    assert pace.line(301.0) == "9000 of 9000 (100%), ending"


def test_without_a_terminal_a_stage_says_a_line_from_time_to_time_even_when_nothing_moves() -> None:
    said = io.StringIO()
    reporter = Reporter(Console(file=said), every_s=0.05)
    with reporter.task("round-1: generate and verify", "requests") as advance:
        time.sleep(0.12)
        advance(0, 50)
        advance(10, 50)
        time.sleep(0.12)
    lines = [line.strip() for line in said.getvalue().splitlines()]
    assert lines[0].startswith("round-1: generate and verify: nothing done after")
    assert any("10 of 50 requests (20%)" in line for line in lines)
    assert lines[-1].startswith("round-1: generate and verify 0.")
    count = len(lines)
    time.sleep(0.1)
    assert len(said.getvalue().splitlines()) == count  # nothing after its end

"""The stage's caller without Ray: every row gets one verdict, whatever the pool does; only what failed goes again."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spftsql.config import Config, VerificationConfig
from spftsql.errors import Fault
from spftsql.recipes import validate
from spftsql.records import Verdict, VerificationRequest
from spftsql.verification import pool, stage
from spftsql.verification.pool import PoolGone

Answer = Callable[[Sequence[VerificationRequest], int], Sequence[Verdict | None]]


def verdict(request: VerificationRequest, fault: str | None = None) -> Verdict:
    status = "unverifiable" if fault else "ran"
    return Verdict(request.id, request.db_id, status, "", 0.1, 1, False, "", "sqlite", fault)


def verified(
    monkeypatch: pytest.MonkeyPatch, requests: Sequence[VerificationRequest], answer: Answer
) -> tuple[list[Verdict], list[list[str]], list[float]]:
    """The caller's verdicts with a pool that answers so; the calls (ids of their rows), and the pauses between them."""
    calls: list[list[str]] = []
    pauses: list[float] = []
    loops: list[asyncio.AbstractEventLoop] = []

    class Client:
        def __init__(self, databases: Any, limits: Any) -> None:
            pass

        @asynccontextmanager
        async def turn(self) -> AsyncIterator[int]:
            yield 1

        async def begin(self, batch: Sequence[VerificationRequest]) -> Sequence[Verdict | None]:
            calls.append([request.id for request in batch])
            return answer(batch, len(calls))

    sleep_for = asyncio.sleep

    async def sleep(seconds: float) -> None:
        """Threads that other tests left running (Ray Serve's router) sleep too: only this loop's pauses count."""
        if asyncio.get_running_loop() is not loops[0]:
            return await sleep_for(seconds)
        pauses.append(seconds)

    async def run() -> list[Verdict]:
        loops.append(asyncio.get_running_loop())
        caller = stage.PoolCaller({"shop": "shop.sqlite", "zoo": "zoo.sqlite"}, config())
        return await caller.verify(list(requests))

    monkeypatch.setattr(stage, "PoolClient", Client)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    return asyncio.run(run()), calls, pauses


def config() -> Config:
    base = validate({"name": "test", "data": {"benchmark": "demo"}, "model": {"path": "unused"}}, where="test")
    return base.model_copy(update={"verification": VerificationConfig(batch_size=8)})


def rows(count: int, database: str = "shop") -> list[VerificationRequest]:
    return [VerificationRequest(f"{database}{i}", database, f"SELECT {i}", None, "strict") for i in range(count)]


def test_a_batch_whose_worker_is_lost_goes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(batch: Sequence[VerificationRequest], call: int) -> list[Verdict]:
        if call <= 3:
            raise Fault("the worker died")
        return [verdict(request) for request in batch]

    verdicts, calls, pauses = verified(monkeypatch, rows(5), answer)
    assert [v.status for v in verdicts] == ["ran"] * 5
    assert len(calls) == 4
    assert pauses == [1, 2, 4]


def test_a_batch_that_loses_every_worker_ends_as_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(batch: Sequence[VerificationRequest], call: int) -> list[Verdict]:
        raise Fault("the worker died")

    verdicts, calls, pauses = verified(monkeypatch, rows(5), answer)
    assert [v.fault for v in verdicts] == ["the worker died"] * 5
    assert len(calls) == stage._LOSSES
    assert sum(pauses) > 120


def test_a_pool_that_was_taken_down_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(batch: Sequence[VerificationRequest], call: int) -> list[Verdict]:
        if call > 1:
            raise PoolGone("taken down")
        return [verdict(request, "replica away" if request.id == "shop3" else None) for request in batch]

    verdicts, calls, _ = verified(monkeypatch, rows(5), answer)
    assert sorted((v.id, v.fault) for v in verdicts if v.fault) == [("shop3", "taken down")]
    assert len(verdicts) == 5
    assert len(calls) == 2


def test_only_the_rows_that_failed_go_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(batch: Sequence[VerificationRequest], call: int) -> list[Verdict]:
        return [verdict(request, "replica away" if request.id == "shop3" and call < 3 else None) for request in batch]

    verdicts, calls, _ = verified(monkeypatch, rows(5), answer)
    assert [v.fault for v in verdicts] == [None] * 5
    assert calls == [[f"shop{i}" for i in range(5)], ["shop3"], ["shop3"]]


def test_a_database_that_stays_away_costs_its_rows_and_no_time_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(batch: Sequence[VerificationRequest], call: int) -> list[Verdict]:
        return [verdict(request, "gone" if request.db_id == "zoo" else None) for request in batch]

    requests = [*rows(24, "zoo"), *rows(8), *rows(4, "unknown")]
    verdicts, calls, _ = verified(monkeypatch, requests, answer)
    assert Counter((v.db_id, v.fault) for v in verdicts) == {
        ("zoo", "gone"): 24,
        ("shop", None): 8,
        ("unknown", "no database is named unknown"): 4,
    }
    attempts = Counter(name for call in calls for name in call if name.startswith("zoo"))
    assert max(attempts.values()) == stage._TRIES
    assert len(calls) < 1 + 3 * stage._TRIES  # not every batch of it to the last attempt


def test_rows_that_a_worker_did_not_come_to_go_to_the_next_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(batch: Sequence[VerificationRequest], call: int) -> list[Verdict | None]:
        return [verdict(request) if at < 3 else None for at, request in enumerate(batch)]

    verdicts, calls, pauses = verified(monkeypatch, rows(8), answer)
    assert sorted(v.id for v in verdicts) == [f"shop{i}" for i in range(8)]
    assert [v.fault for v in verdicts] == [None] * 8
    assert calls == [[f"shop{i}" for i in numbers] for numbers in (range(8), range(3, 8), range(6, 8))]
    assert pauses == []


FATES = ["answers", "dies", "fails for some", "does some", "does some and fails", "is gone"]


@given(st.lists(st.sampled_from(FATES), max_size=40), st.integers(0, 40))
def test_every_row_gets_one_verdict_or_one_fault(fates: list[str], count: int) -> None:
    def answer(batch: Sequence[VerificationRequest], call: int) -> list[Verdict | None]:
        fate = fates[call - 1] if call <= len(fates) else "answers"
        if fate == "dies":
            raise Fault("the worker died")
        if fate == "is gone":
            raise PoolGone("taken down")
        done = len(batch) // 2 + 1 if "does some" in fate else len(batch)
        return [
            verdict(r, "away" if "fails" in fate and int(r.id[-1]) % 2 else None) if at < done else None
            for at, r in enumerate(batch)
        ]

    requests = [*rows(count), *rows(count // 2, "zoo")]
    with pytest.MonkeyPatch.context() as monkeypatch:
        verdicts, calls, _ = verified(monkeypatch, requests, answer)
    assert sorted(v.id for v in verdicts) == sorted(r.id for r in requests)
    assert all((v.fault is None) == (v.status == "ran") for v in verdicts)
    assert all(len(call) <= 8 and len({name[:3] for name in call}) == 1 for call in calls)


class CountingHandle:
    """Stands in for Serve's handle: calls take a while, and the most that were on their way together are known."""

    def __init__(self) -> None:
        self.ongoing = self.most = self.answered = 0
        self.verify = self

    async def remote(self, limits: str, sources: Any, rows: Sequence[Any]) -> tuple[list[Any], float]:
        """Does the first two of the rows."""
        self.ongoing += 1
        self.most = max(self.most, self.ongoing)
        await asyncio.sleep(0.01)
        self.ongoing -= 1
        self.answered += 1
        done = [pool._verdict_row(verdict(VerificationRequest(*row))) for row in rows[:2]]
        return [*done, *[None] * (len(rows) - len(done))], 0.0


def test_a_client_sends_as_many_calls_as_the_workers_that_run_can_take(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import serve

    handle, workers, most = CountingHandle(), [2], list[int]()
    monkeypatch.setattr(serve, "get_app_handle", lambda name: handle)
    monkeypatch.setattr(pool, "_workers", lambda: workers[0])
    monkeypatch.setattr(pool, "_LOOK_S", 0.02)

    async def run() -> None:
        client = pool.PoolClient({"shop": "shop.sqlite"}, config().sandbox)
        for workers[0] in (2, 5, 1):
            await client._is_there()
            handle.most = 0
            await asyncio.gather(*(client.verify(rows(1)) for _ in range(60)))
            most.append(handle.most)
            await asyncio.sleep(0.05)  # until it looks again
        workers[0], calls = 1, [asyncio.ensure_future(client.verify(rows(1))) for _ in range(200)]
        await asyncio.sleep(0.03)
        handle.most, workers[0] = 0, 6  # the pool grows while calls wait for their turn
        await asyncio.gather(*calls)
        most.append(handle.most)

    asyncio.run(run())
    assert most == [8, 20, 4, 24]
    assert handle.answered == 3 * 60 + 200


def test_a_client_whose_call_was_given_up_has_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import serve

    handle = CountingHandle()
    monkeypatch.setattr(serve, "get_app_handle", lambda name: handle)
    monkeypatch.setattr(pool, "_workers", lambda: 1)

    async def run() -> None:
        client = pool.PoolClient({"shop": "shop.sqlite"}, config().sandbox)
        given_up = [asyncio.ensure_future(client.verify(rows(1))) for _ in range(20)]
        await asyncio.sleep(0.005)
        for call in given_up:
            call.cancel()
        await asyncio.gather(*given_up, return_exceptions=True)
        await asyncio.wait_for(asyncio.gather(*(client.verify(rows(1)) for _ in range(8))), timeout=5)

    asyncio.run(run())


def test_a_client_asks_again_for_what_a_worker_did_not_come_to(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import serve

    handle = CountingHandle()
    monkeypatch.setattr(serve, "get_app_handle", lambda name: handle)
    monkeypatch.setattr(pool, "_workers", lambda: 1)

    async def run() -> list[Verdict]:
        return await pool.PoolClient({"shop": "shop.sqlite"}, config().sandbox).verify(rows(7))

    assert [v.id for v in asyncio.run(run())] == [f"shop{i}" for i in range(7)]
    assert handle.answered == 4

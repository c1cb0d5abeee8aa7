"""The deployments behind the endpoint, model and verifiers, as the service calls them; their failures become faults."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serve.metrics import Metrics
from serve.models import Ask, Piece
from spftsql.errors import Fault
from spftsql.sandbox.result import Execution, Granted
from spftsql.serving.voting import Contest
from spftsql.verification.pool import PoolClient, PoolGone

T = TypeVar("T")


class Backend(Protocol):
    """The model and the sandbox behind the endpoint. Everything raises `Fault` where they fail."""

    def complete(self, ask: Ask) -> Awaitable[list[Piece]]:
        """One piece for each sample, in order."""

    def stream(self, ask: Ask) -> AsyncGenerator[list[Piece]]:
        """Pieces as they are written."""

    def contest(
        self, db_id: str, candidates: Sequence[str], max_rows: int, granted: Granted | None
    ) -> Awaitable[Contest]:
        """Candidates for one question, executed: a verdict on each, and the rows of the one that wins."""

    def plan(self, db_id: str, sql: str, granted: Granted | None) -> Awaitable[Execution]:
        """How one statement would be executed (see `spftsql.sandbox.query_plan`)."""


class RayBackend:
    """`Backend` over the deployments of this Serve instance."""

    def __init__(self, model: DeploymentHandle[Any], verifier: PoolClient, metrics: Metrics) -> None:
        """Takes the model's handle and the pool."""
        self._model, self._verifier, self._metrics = model, verifier, metrics
        self._streams = model.options(stream=True)

    async def complete(self, ask: Ask) -> list[Piece]:
        """See `Backend`."""

        async def call() -> list[Piece]:
            pieces: list[Piece] = await self._model.complete.remote(ask)
            return pieces

        with self._metrics.generating.at().track_inprogress(), self._failing("model"):
            return await _again(call)

    async def stream(self, ask: Ask) -> AsyncGenerator[list[Piece]]:
        """See `Backend`."""
        with self._metrics.generating.at().track_inprogress(), self._failing("model"):
            response = self._streams.stream.remote(ask)
            done = False
            try:
                async for pieces in response:
                    yield pieces
                done = True
            finally:
                if not done:  # the client went away, or the request took too long
                    response.cancel()

    async def contest(self, db_id: str, candidates: Sequence[str], max_rows: int, granted: Granted | None) -> Contest:
        """See `Backend`."""
        with self._metrics.executing.at().track_inprogress(), self._failing("verifier"):
            return await _again(lambda: self._verifier.contest(db_id, candidates, max_rows, granted))

    async def plan(self, db_id: str, sql: str, granted: Granted | None) -> Execution:
        """See `Backend`."""
        with self._metrics.executing.at().track_inprogress(), self._failing("verifier"):
            return await _again(lambda: self._verifier.plan(db_id, sql, granted))

    @contextlib.contextmanager
    def _failing(self, part: str):  # type: ignore[no-untyped-def]
        try:
            yield
        except Fault:
            self._metrics.faults.at(part).inc()
            raise
        except (RayError, RayServeException) as error:
            self._metrics.faults.at(part).inc()
            raise Fault(f"the {part}'s replica failed: {_last_line(error)}") from None


async def _again(call: Callable[[], Awaitable[T]]) -> T:
    """Calls once more where a replica was lost on the way: asking twice does no harm."""
    try:
        return await call()
    except PoolGone:
        raise
    except (ActorDiedError, ActorUnavailableError, Fault):
        return await call()


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1][:300]

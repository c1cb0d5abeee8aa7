"""The door of the endpoint: who asks, how often, how much and how long; one log line and the metrics of each request.

ASGI middleware, so that it holds for every route alike (`/mcp` too), before anything of a request is read.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import time
import uuid
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import ApiError
from serve.metrics import Metrics
from serve.page_files import FOLDER as PAGE_FOLDER
from spftsql.errors import UserError
from spftsql.serving.keys import OWNER, KeyRing, Principal

OPEN = ("/", "/healthz")  # no key is needed for these
OPEN_FOLDER = PAGE_FOLDER
_REQUEST_ID = re.compile(rb"[\w.:-]{1,128}")
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
log = logging.getLogger("spftsql.requests")


class Gate:
    """Lets a request pass to the application when it may, and tells what became of it."""

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyRing,
        metrics: Metrics,
        max_body: int,
        seconds: float,
        hosts: frozenset[str] | None,
        route_of: Callable[[Scope], str],
    ) -> None:
        """`max_body` in bytes; `seconds` for one request; `hosts` that may stand in the header Host (None: any).

        `route_of` names the route of a request for logs and metrics, where paths would be endless.
        """
        self._app, self._keys, self._metrics = app, keys, metrics
        self._max_body, self._seconds, self._hosts, self._route_of = max_body, seconds, hosts, route_of
        self._buckets: dict[str, _Bucket] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Passage(scope, self._route_of(scope))
        self._metrics.ongoing.at().inc()
        try:
            await self._pass(request, receive, send)
        finally:
            self._metrics.ongoing.at().dec()
            self._tell(request)

    async def _pass(self, request: _Passage, receive: Receive, send: Send) -> None:
        scope = request.scope
        send = request.watched(send)
        try:
            refusal = self._refusal(request)
        except UserError as error:
            log.error("%s", error)
            refusal = ApiError(503, "the keys cannot be read", code="fault", headers={"Retry-After": "5"})
        if refusal is not None:
            self._metrics.refused.at(str(refusal.code)).inc()
            await refusal.response()(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._seconds):
                body = await self._body(receive)
                if body is None:
                    await self._too_large().response()(scope, receive, send)
                else:
                    await self._app(scope, _replayed(body, receive), send)
        except TimeoutError:
            request.error = "timeout"
            if request.status is not None:  # a stream that began; its client sees that it broke off
                raise
            message = f"not answered within {self._seconds:g} s"
            error = ApiError(504, message, code="timeout", headers={"Retry-After": "5"})
            await error.response()(scope, receive, send)
        except Exception as error:  # answered with 500 by the application already
            request.error = type(error).__name__
            log.error("unexpected error in request %s", request.id, exc_info=error)
            if request.status is None:
                raise

    def _refusal(self, request: _Passage) -> ApiError | None:
        headers = request.headers
        if self._hosts is not None and _name(headers.get(b"host", b"")) not in self._hosts:
            return ApiError(421, "this endpoint is not known by that name", code="unknown_host")
        path = request.scope["path"]
        if path not in OPEN and not path.startswith(OPEN_FOLDER) and request.scope["method"] != "OPTIONS":
            principal = self._principal(headers)
            if principal is None:
                return ApiError(
                    401,
                    "a valid key is needed: send the header `Authorization: Bearer KEY`",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            request.principal = principal
            request.scope.setdefault("state", {})["principal"] = principal
            wait = self._bucket(principal)
            if wait:
                return ApiError(
                    429,
                    "this key has made too many requests; try again later",
                    code="rate_limit_exceeded",
                    headers={"Retry-After": str(math.ceil(wait))},
                )
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._max_body:
            return self._too_large()
        return None

    def _principal(self, headers: dict[bytes, bytes]) -> Principal | None:
        if self._keys.is_open:
            return OWNER
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        return self._keys.principal(key.strip().decode("utf-8", "surrogateescape"))

    def _bucket(self, principal: Principal) -> float:
        """Seconds until this caller may ask again; 0 when it may ask now."""
        if principal.requests_per_minute is None:
            return 0.0
        bucket = self._buckets.get(principal.id)
        if bucket is None or bucket.per_minute != principal.requests_per_minute:
            bucket = self._buckets[principal.id] = _Bucket(principal.requests_per_minute)
        return bucket.take()

    async def _body(self, receive: Receive) -> list[Message] | None:
        """The messages of the request's body; None when it is too large."""
        messages: list[Message] = []
        left = self._max_body
        while True:
            message = await receive()
            messages.append(message)
            left -= len(message.get("body", b""))
            if left < 0:
                return None
            if message["type"] != "http.request" or not message.get("more_body"):
                return messages

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._max_body // 1024} KiB", code="too_large")

    def _tell(self, request: _Passage) -> None:
        status, took = request.status or 499, time.perf_counter() - request.begin  # 499: the client went away
        method = request.scope["method"]
        self._metrics.requests.at(request.route, method, str(status)).inc()
        self._metrics.seconds.at(request.route).observe(took)
        line: dict[str, Any] = {
            "request": request.id,
            "key": request.principal.id if request.principal else None,
            "method": method,
            "route": request.route,
            "status": status,
            "ms": round(took * 1000, 1),
            **request.scope.get("state", {}).get("log", {}),
        }
        if request.error:
            line["error"] = request.error
        log.info("%s", json.dumps(line))


class _Passage:
    """One request on its way."""

    def __init__(self, scope: Scope, route: str) -> None:
        self.scope, self.route, self.begin = scope, route, time.perf_counter()
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self.headers.get(b"x-request-id", b"")
        self.id = given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["state"] = {**scope.get("state", {}), "request_id": self.id, "log": {}}
        self.status: int | None = None
        self.principal: Principal | None = None
        self.error = ""

    def watched(self, send: Send) -> Send:
        """`send` that notes the status and adds the request's id."""

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", self.id.encode())]}
            await send(message)

        return watched


def _replayed(messages: list[Message], receive: Receive) -> Receive:
    waiting = iter(messages)

    async def replayed() -> Message:
        return next(waiting, None) or await receive()

    return replayed


class _Bucket:
    """Tokens that come back evenly; a minute's worth of them may be spent at once."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._tokens, self._at = float(per_minute), time.monotonic()

    def take(self) -> float:
        now = time.monotonic()
        self._tokens = min(float(self.per_minute), self._tokens + (now - self._at) * self.per_minute / 60)
        self._at = now
        if self._tokens < 1:
            return (1 - self._tokens) * 60 / self.per_minute
        self._tokens -= 1
        return 0.0


def known_hosts(host: str, others: tuple[str, ...]) -> frozenset[str]:
    """The names, in lower case and without a port, by which the endpoint may be called."""
    return frozenset({host.lower(), f"[{host.lower()}]" if ":" in host else host.lower(), *_LOOPBACK, *others})


def _name(host: bytes) -> str:
    """The header Host without its port."""
    text = host.decode("latin-1").lower()
    return text.partition("]")[0] + "]" if text.startswith("[") else text.partition(":")[0]

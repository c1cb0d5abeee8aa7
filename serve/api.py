"""The HTTP side of the endpoint: routes, the key, and errors. What the routes do is in `service`."""

from __future__ import annotations

import hashlib
import hmac
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.errors import ApiError
from serve.schemas import ChatRequest, ChatResponse, SqlRequest, SqlResponse
from serve.service import Service
from spftsql import __version__
from spftsql.errors import Fault

_OPEN = ("/healthz",)  # every other path needs the key, where there is one
_RETRY = {"Retry-After": "1"}
_log = logging.getLogger("ray.serve")


def key_digest(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).digest()


class KeyCheck:
    """ASGI middleware: answers 401 to a request without the key, before anything of it is read."""

    def __init__(self, app: ASGIApp, digest: bytes) -> None:
        """Takes the digest of the only valid key."""
        self._app, self._digest = app, digest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on when it may pass."""
        if scope["type"] != "http" or scope["path"] in _OPEN or self._valid(scope):
            await self._app(scope, receive, send)
            return
        error = ApiError(
            401,
            "a valid key is needed: send the header `Authorization: Bearer KEY`",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await error.response()(scope, receive, send)

    def _valid(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        # Digests have one length, so the comparison takes the same time for every wrong key.
        same = hmac.compare_digest(hashlib.sha256(key.strip()).digest(), self._digest)
        return same and scheme.lower() == b"bearer"


def create_api(service: Service, digest: bytes | None) -> FastAPI:
    """The application over `service`; with `digest` every route but `/healthz` needs the key."""
    api = FastAPI(title="spftsql", version=__version__, docs_url=None, redoc_url=None)
    if digest is not None:
        api.add_middleware(KeyCheck, digest=digest)
    api.add_exception_handler(ApiError, _api_error)
    api.add_exception_handler(RequestValidationError, _validation_error)
    api.add_exception_handler(HTTPException, _http_error)
    api.add_exception_handler(Fault, _fault)
    api.add_exception_handler(Exception, _unexpected)

    @api.post("/v1/sql")
    async def sql(request: SqlRequest) -> SqlResponse:
        """Answers a question about a database with SQL and its rows."""
        return await service.answer(request)

    @api.post("/v1/chat/completions")
    async def chat_completions(request: ChatRequest) -> ChatResponse:
        """OpenAI's chat: `NAME` is the raw model, `NAME@DATABASE` answers the last user message with SQL."""
        return await service.chat(request)

    @api.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The names that `/v1/chat/completions` takes."""
        return {"object": "list", "data": [_model(name, service.created) for name in service.models()]}

    @api.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        if name not in service.models():
            raise ApiError(404, f"no model {name}", code="model_not_found", param="model")
        return _model(name, service.created)

    @api.get("/v1/databases")
    async def databases() -> dict[str, Any]:
        """The databases that can be asked, with their tables."""
        return {"object": "list", "data": service.databases()}

    @api.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the endpoint is up."""
        return {"status": "ok", "model": service.model_name}

    return api


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "spftsql"}


async def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error.response()


async def _validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {first['ctx']['error']}", code="invalid_json").response()
    param = ".".join(str(part) for part in first["loc"] if part != "body") or None
    message = f"{param}: {first['msg']}" if param else first["msg"]
    unknown = first["type"] == "extra_forbidden"
    if unknown:
        message = f"unknown field {param}"
    return ApiError(400, message, code="unknown_field" if unknown else "invalid_value", param=param).response()


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return ApiError(error.status_code, message, headers=error.headers).response()


async def _fault(_: Request, error: Exception) -> JSONResponse:
    _log.error("fault: %s", error)
    return ApiError(503, "the service has a fault; try again", code="fault", headers=_RETRY).response()


async def _unexpected(_: Request, error: Exception) -> JSONResponse:
    _log.error("unexpected error", exc_info=error)
    return ApiError(500, "internal error", code="internal_error", headers=_RETRY).response()

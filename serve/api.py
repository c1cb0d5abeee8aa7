"""The HTTP side of the endpoint: routes and errors. What the routes do is in `service`; the door is `gate`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Match, Route
from starlette.types import Scope

from serve.errors import ApiError
from serve.gate import Gate, known_hosts
from serve.mcp_server import PATH as MCP_PATH
from serve.mcp_server import McpEndpoint
from serve.metrics import CONTENT_TYPE
from serve.openai_api import Completions, begun, named_events, openai_events
from serve.page_files import add_page
from serve.schemas import (
    MAX_CANDIDATES,
    CallerResponse,
    ChatRequest,
    CompletionRequest,
    FeedbackRequest,
    FeedbackResponse,
    PlanRequest,
    PlanResponse,
    QueryRequest,
    QueryResponse,
    SchemaResponse,
    SqlRequest,
    SqlResponse,
)
from serve.service import Service
from spftsql import __version__
from spftsql.errors import Fault
from spftsql.serving.feedback import store_feedback
from spftsql.serving.keys import KeyRing, Principal

_RETRY = {"Retry-After": "1"}
_EVENTS = {
    "media_type": "text/event-stream",
    "headers": {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    for status, text in {
        400: "The request is not as it should be",
        401: "No valid key",
        403: "The key may not do this",
        404: "No such database or model",
        413: "The body is too large",
        429: "Too many requests with this key",
        503: "A database or the model is not there at the moment; Retry-After says when to try again",
        504: "Not answered in time",
    }.items()
}
_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def create_api(service: Service, keys: KeyRing) -> FastAPI:
    """The application over `service`; where there are keys, every route needs one but those that `gate` leaves open."""
    config = service.config.serve
    hosts = known_hosts(config.host, config.hosts)
    max_body = config.max_body_kb * 1024
    tools = McpEndpoint(service, hosts, config.origins, max_body)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with tools.running():
            yield

    api = FastAPI(
        title="spftsql",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses=_ERRORS,
        middleware=[
            Middleware(
                CORSMiddleware,
                allow_origins=list(config.origins),
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
                expose_headers=["X-Request-Id", "Retry-After"],
            ),
            Middleware(
                Gate,
                keys=keys,
                metrics=service.metrics,
                max_body=max_body,
                seconds=config.request_seconds,
                # With keys a name that leads here from elsewhere does no harm; without, it may be a web site's trick.
                hosts=hosts if keys.is_open else None,
                route_of=lambda scope: _route_of(api, scope),
            ),
        ],
    )
    _handle_errors(api)
    _add_routes(api, service)
    api.router.routes.append(Route(MCP_PATH, endpoint=tools))
    add_page(api)
    _describe_errors(api)
    return api


def _principal(request: Request) -> Principal:
    principal: Principal = request.state.principal
    return principal


Caller = Annotated[Principal, Depends(_principal)]


def _need(principal: Principal, scope: str) -> None:
    if scope not in principal.scopes:
        raise ApiError(403, f"this key lacks the scope `{scope}`", code="missing_scope")


def _add_routes(api: FastAPI, service: Service) -> None:
    completions = Completions(service)

    @api.post(
        "/v1/sql",
        response_model=SqlResponse,
        responses={200: {"description": "The answer; with `stream` as server-sent events"}},
    )
    async def sql(body: SqlRequest, caller: Caller, request: Request) -> Any:
        """Answers a question about a database with SQL and its rows.

        With `stream` the answer comes as events: `token`, `verdict`, `rows`, `done`; the data of the last three add up
        to the answer.
        """
        _need(caller, "ask")
        request.state.log["database"] = body.database
        if body.stream:
            return StreamingResponse(named_events(await begun(service.events(caller, body))), **_EVENTS)
        answer = await service.answer(caller, body)
        request.state.log |= {"status_of_sql": answer.verdict.status, "tokens": answer.usage.total_tokens}
        return answer

    @api.post("/v1/query")
    async def query(body: QueryRequest, caller: Caller, request: Request) -> QueryResponse:
        """Executes a statement in the sandbox."""
        _need(caller, "query")
        request.state.log["database"] = body.database
        return await service.query(caller, body)

    @api.post("/v1/plan")
    async def plan(body: PlanRequest, caller: Caller, request: Request) -> PlanResponse:
        """Explains how the database would execute a statement; needs the scope `query`."""
        _need(caller, "query")
        request.state.log["database"] = body.database
        return await service.plan(caller, body)

    @api.post("/v1/chat/completions", response_model=dict[str, Any])
    async def chat_completions(body: ChatRequest, caller: Caller, request: Request) -> Any:
        """OpenAI's chat: `NAME` is the raw model, `NAME@DATABASE` answers the last user message with SQL."""
        request.state.log["model"] = body.model
        completion = await completions.chat(caller, body)
        if body.stream:
            return StreamingResponse(openai_events(await begun(completion.chunks())), **_EVENTS)
        return JSONResponse(await completion.whole())

    @api.post("/v1/completions", response_model=dict[str, Any])
    async def text_completions(body: CompletionRequest, caller: Caller, request: Request) -> Any:
        """OpenAI's completions: `NAME` continues the prompt, `NAME@DATABASE` answers it as a question with SQL."""
        request.state.log["model"] = body.model
        completion = await completions.text(caller, body)
        if body.stream:
            return StreamingResponse(openai_events(await begun(completion.chunks())), **_EVENTS)
        return JSONResponse(await completion.whole())

    @api.get("/v1/models")
    async def models(caller: Caller) -> dict[str, Any]:
        """The names that the completions take."""
        return {"object": "list", "data": [_model(name, service.created) for name in service.models(caller)]}

    @api.get("/v1/models/{name:path}")
    async def model(name: str, caller: Caller) -> dict[str, Any]:
        """One of them."""
        if name not in service.models(caller):
            raise ApiError(404, f"no model {name}", code="model_not_found", param="model")
        return _model(name, service.created)

    @api.get("/v1/databases")
    async def databases(caller: Caller) -> dict[str, Any]:
        """The databases that can be asked, with their tables."""
        return {"object": "list", "data": service.databases(caller)}

    @api.get("/v1/databases/{name}")
    async def schema(name: str, caller: Caller) -> SchemaResponse:
        """The schema of one of them: tables, columns with types and sample values, keys."""
        return service.schema(caller, name)

    @api.get("/v1/me")
    async def me(caller: Caller) -> CallerResponse:
        """Who asks, what the key may do, and what this endpoint offers."""
        return CallerResponse(
            name=caller.name,
            scopes=sorted(caller.scopes),
            model=service.model_name,
            keeps_feedback=service.config.serve.feedback is not None,
            max_rows=service.config.serve.max_rows,
            max_candidates=MAX_CANDIDATES,
        )

    @api.post("/v1/feedback")
    async def feedback(body: FeedbackRequest, caller: Caller, request: Request) -> FeedbackResponse:
        """Keeps what a person says of an answer; confirmed and corrected ones are labels for the next run."""
        _need(caller, "feedback")
        folder = service.config.serve.feedback
        if folder is None:
            raise ApiError(404, "this endpoint keeps no feedback (serve.feedback is not set)", code="no_feedback")
        service.database(caller, body.database)
        if body.corrected is not None:
            await _check_correction(service, caller, body)
        return _store(service, caller, body, folder, request.state.request_id)

    @api.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the endpoint is up."""
        return {"status": "ok", "model": service.model_name}

    @api.get("/metrics", response_class=Response)
    async def metrics(caller: Caller) -> Response:
        """Counters for Prometheus; needs the scope `metrics`."""
        _need(caller, "metrics")
        return Response(service.metrics.page(), media_type=CONTENT_TYPE)


async def _check_correction(service: Service, caller: Principal, body: FeedbackRequest) -> None:
    assert body.corrected is not None
    answer = await service.query(caller, QueryRequest(database=body.database, sql=body.corrected, max_rows=1))
    if answer.verdict.status not in ("ran", "truncated"):
        message = f"the corrected SQL does not run: {answer.verdict.reason or answer.verdict.status}"
        raise ApiError(400, message, code="invalid_value", param="corrected")


def _store(
    service: Service, caller: Principal, body: FeedbackRequest, folder: Path, request_id: str
) -> FeedbackResponse:
    entry = store_feedback(
        folder,
        database=body.database,
        question=body.question,
        evidence=body.evidence,
        answer=body.sql,
        corrected=body.corrected or "",
        rating=body.rating,
        comment=body.comment,
        model=service.model_name,
        prompt_hash=service.prompts.hash,
        key=caller.id,
        request=request_id,
    )
    service.metrics.feedback.at("corrected" if body.corrected else body.rating).inc()
    return FeedbackResponse(id=entry.id, labelled=bool(entry.sql))


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "spftsql"}


def _route_of(api: FastAPI, scope: Scope) -> str:
    """The path of the route, without what stands for names in it."""
    for route in api.routes:
        if isinstance(route, Route) and route.matches(scope)[0] != Match.NONE:
            return route.path
    return "other"


def _describe_errors(api: FastAPI) -> None:
    """Puts the errors' shape into the description in place of FastAPI's own, which this API never sends."""
    schema = api.openapi()
    schemas = schema["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Error"] = _ERROR_SCHEMA
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)


def _handle_errors(api: FastAPI) -> None:
    api.add_exception_handler(ApiError, _api_error)
    api.add_exception_handler(RequestValidationError, _validation_error)
    api.add_exception_handler(HTTPException, _http_error)
    api.add_exception_handler(Fault, _fault)
    api.add_exception_handler(Exception, _unexpected)


async def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    if error.cause:
        request.state.log["fault"] = error.cause
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


async def _fault(request: Request, error: Exception) -> JSONResponse:
    request.state.log["fault"] = str(error)
    return ApiError(503, "the service has a fault; try again", code="fault", headers=_RETRY).response()


async def _unexpected(_: Request, error: Exception) -> JSONResponse:
    return ApiError(500, "internal error", code="internal_error", headers=_RETRY).response()

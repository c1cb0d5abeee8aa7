"""The endpoint's tools for agents: the Model Context Protocol, stateless over streamable HTTP, with the same keys."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.errors import ApiError
from serve.schemas import QueryRequest, SqlRequest
from serve.service import Service
from spftsql import __version__
from spftsql.databases.schema_text import schema_text
from spftsql.errors import Fault
from spftsql.serving.keys import Principal

PATH = "/mcp"
_PORTS = ":*"


def mcp_server(service: Service) -> MCPServer[Any]:
    """The tools over `service`. The caller is the one that the gate has let in."""
    server: MCPServer[Any] = MCPServer(
        name="spftsql",
        version=__version__,
        instructions=(
            "Answers questions about databases with SQL that was executed. Read-only. "
            "Start with list_databases; `ask` writes the SQL, `query` takes yours."
        ),
        log_level="ERROR",
    )

    @server.tool()
    async def list_databases(ctx: Context) -> list[dict[str, Any]]:  # type: ignore[type-arg]
        """The databases that can be asked, with their SQL dialect and the names of their tables."""
        caller = _caller(ctx)
        return [
            {
                "database": entry["id"],
                "dialect": entry["dialect"],
                "tables": [table["name"] for table in entry["tables"]],
            }
            for entry in service.databases(caller)
        ]

    @server.tool()
    async def describe_database(database: str, ctx: Context) -> str:  # type: ignore[type-arg]
        """The schema of a database: tables, columns with kinds and sample values, and foreign keys."""
        try:
            return schema_text(service.database(_caller(ctx), database).schema)
        except ApiError as error:
            raise ToolError(error.message) from None

    @server.tool()
    async def query(database: str, sql: str, ctx: Context, max_rows: int | None = None) -> dict[str, Any]:  # type: ignore[type-arg]
        """Executes one SELECT statement and returns its verdict, columns and rows."""
        try:
            request = QueryRequest(database=database, sql=sql, max_rows=max_rows)
            return (await service.query(_caller(ctx, "query"), request)).model_dump()
        except (ApiError, Fault, ValidationError) as error:
            raise ToolError(_message(error)) from None

    @server.tool()
    async def ask(  # type: ignore[type-arg]
        database: str, question: str, ctx: Context, evidence: str = "", n: int = 1, max_rows: int | None = None
    ) -> dict[str, Any]:
        """Answers a question in plain words with SQL, the verdict of its execution, and its rows.

        With n above 1, so many candidates vote with their results.
        """
        try:
            request = SqlRequest(database=database, question=question, evidence=evidence, n=n, max_rows=max_rows)
            return (await service.answer(_caller(ctx, "ask"), request)).model_dump()
        except (ApiError, Fault, ValidationError) as error:
            raise ToolError(_message(error)) from None

    return server


class McpEndpoint:
    """The ASGI application of the tools; requests by other names or from other web sites are refused."""

    def __init__(self, service: Service, hosts: frozenset[str], origins: tuple[str, ...], max_body: int) -> None:
        """`hosts` without ports, `origins` whole; `max_body` in bytes."""
        names = [*hosts, *(host + _PORTS for host in hosts)]
        sites = [f"{scheme}://{name}" for name in names for scheme in ("http", "https")]
        self._security = TransportSecuritySettings(allowed_hosts=names, allowed_origins=[*sites, *origins])
        self._service, self._max_body = service, max_body
        self._app: ASGIApp | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answers while this is entered. The SDK's server starts once, so there is one for each time."""
        server = mcp_server(self._service)
        self._app = server.streamable_http_app(
            streamable_http_path=PATH,
            json_response=True,
            stateless_http=True,
            max_request_body_size=self._max_body,
            transport_security=self._security,
        )
        async with server.session_manager.run():
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        assert self._app is not None, "not running"
        await self._app(scope, receive, send)


def _caller(ctx: Context, scope: str | None = None) -> Principal:  # type: ignore[type-arg]
    request = ctx.request_context.request
    principal: Principal = request.state.principal
    if scope is not None and scope not in principal.scopes:
        raise ToolError(f"this key lacks the scope `{scope}`")
    return principal


def _message(error: ApiError | Fault | ValidationError) -> str:
    if isinstance(error, ApiError):
        return error.message
    if isinstance(error, Fault):
        return "the service has a fault; try again"
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"

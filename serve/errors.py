"""Errors as the endpoint says them: OpenAI's JSON shape, with the HTTP status that fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer that is an error; `status` is the HTTP status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        cause: str = "",
    ) -> None:
        """Takes the message, OpenAI's `code` for it, and the request's field at fault (`param`).

        `cause` is for the log and not for the caller.
        """
        super().__init__(message)
        self.cause = cause
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers

    def body(self) -> dict[str, Any]:
        """The error as OpenAI's JSON."""
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
            self.status, "invalid_request_error"
        )
        error = {
            "message": self.message,
            "type": "server_error" if self.status >= 500 else kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    def response(self) -> JSONResponse:
        """The error as an HTTP response."""
        return JSONResponse(self.body(), status_code=self.status, headers=dict(self.headers or {}))

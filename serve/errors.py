"""Errors as the endpoint says them: OpenAI's JSON shape, with the HTTP status that fits."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse


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
    ) -> None:
        """Takes the message, OpenAI's `code` for it, and the request's field at fault (`param`)."""
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers

    def response(self) -> JSONResponse:
        """The error as an HTTP response."""
        kind = {401: "authentication_error"}.get(self.status, "invalid_request_error")
        error = {
            "message": self.message,
            "type": "server_error" if self.status >= 500 else kind,
            "param": self.param,
            "code": self.code,
        }
        return JSONResponse({"error": error}, status_code=self.status, headers=dict(self.headers or {}))

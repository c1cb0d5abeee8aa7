"""The web page at `/`: the files of `page/`, held in memory, with headers that let it load nothing else."""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve.errors import ApiError
from spftsql.records import content_hash

FOLDER = "/page/"
_INDEX = "index.html"
_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_HEADERS = {
    # Nothing from elsewhere, nothing inline; text becomes markup nowhere (trusted types, and no policy for them).
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asks each time whether it has changed
}


def add_page(api: FastAPI) -> None:
    """Adds `/` and the files that the page loads. They need no key: the page asks for it."""
    page = {
        file.name: file.read_bytes()
        for file in (files("serve") / "page").iterdir()
        if file.name.rpartition(".")[2] in _KINDS
    }
    tags = {name: f'"{content_hash(content.decode())}"' for name, content in page.items()}

    async def serve_file(request: Request) -> Response:
        name = request.path_params.get("name", _INDEX)
        if name not in page:
            raise ApiError(404, f"{request.url.path}: there is no such file", code="not_found")
        headers = {**_HEADERS, "ETag": tags[name]}
        if request.headers.get("if-none-match") == tags[name]:
            return Response(status_code=304, headers=headers)
        return Response(page[name], media_type=_KINDS[name.rpartition(".")[2]], headers=headers)

    for path in ("/", f"{FOLDER}{{name}}"):
        api.router.routes.append(Route(path, serve_file))

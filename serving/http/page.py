"""/: the page to draw on, and its files under /static/.

They are few and small, so that they are read once and answered from memory. Their ETag is a hash of
what is in them: dates and sizes, which servers of files take, are alike in images of two versions.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from serving.http.services import Services
from serving.http.status import answering

STATIC = Path(__file__).parent / "static"
INDEX = "index.html"
CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Kept by browsers, and asked for again each time: a new version of the server is seen at once, and
# what is unchanged costs an answer without a body.
CACHE_CONTROL = "no-cache"


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    content_type: str
    etag: str


def routes(services: Services) -> list[BaseRoute]:
    """The paths of this part."""
    files = {path.name: _read(path) for path in STATIC.iterdir() if path.suffix in CONTENT_TYPES}

    async def index(request: Request) -> Response:
        return _answer(files[INDEX], request)

    async def static(request: Request) -> Response:
        found = files.get(request.path_params["name"])
        if found is None:
            raise HTTPException(404)
        return _answer(found, request)

    return [
        Route("/", answering(index), methods=["GET"]),
        Route("/static/{name}", answering(static), methods=["GET"]),
    ]


def _read(path: Path) -> _File:
    content = path.read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return _File(content, CONTENT_TYPES[path.suffix], etag)


def _answer(file: _File, request: Request) -> Response:
    """The file, or that what the browser has is still the same."""
    headers = {"Cache-Control": CACHE_CONTROL, "ETag": file.etag}
    if _known(file.etag, request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.content_type, headers=headers)


def _known(etag: str, tags: str) -> bool:
    """Whether If-None-Match names it; what compresses on the way makes a tag weak, by W/."""
    return etag in (tag.strip().removeprefix("W/") for tag in tags.split(","))

"""/openapi.json: what there is to ask, for programs. Its parts are those of V2 and our own."""

from __future__ import annotations

import json

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from serving.http import openapi_v1, openapi_v2
from serving.http.openapi_parts import JSON, Part, errors, record, text
from serving.http.services import Services


def routes(services: Services) -> list[BaseRoute]:
    """The paths of this part."""
    written = json.dumps(document(services.v2.version)).encode()

    async def openapi(request: Request) -> Response:
        return Response(written, media_type=JSON)

    return [Route("/openapi.json", openapi, methods=["GET"])]


def document(version: str) -> Part:
    """OpenAPI 3.1, of a server of that version."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "digits",
            "version": version,
            "summary": "Models of digits, and any other ONNX model, over HTTP",
            "description": "The Open Inference Protocol V2 with Triton's extensions, and our own"
            " paths for images of digits, feedback and quality. gRPC has the same, and is faster.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {**openapi_v1.paths(), **openapi_v2.paths()},
        "components": {
            "schemas": {**_ERROR, **openapi_v1.schemas(), **openapi_v2.schemas()},
            "responses": errors(),
            "headers": {"RequestId": _REQUEST_ID},
        },
    }


_ERROR = {"Error": record({"error": text("What is wrong, for a person to read.")})}
_REQUEST_ID = {
    "description": "The request's, as it was sent in a header of that name, or one of our own.",
    "schema": text(),
}

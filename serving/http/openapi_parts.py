"""The words that the OpenAPI document is written in: schemas, parameters, answers, operations.

https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

JSON = "application/json"
BINARY = "application/octet-stream"

Part = dict[str, Any]

# What can go wrong, by HTTP status; each is a component, {"error": ...} all of them.
ERRORS = {
    400: "What was sent is wrong; the error names what was expected where.",
    403: "The caller may not do that: administration is off, or open to this machine only; or"
    " another site's page had a browser ask.",
    404: "There is no such model, version, or report.",
    408: "The body stopped arriving.",
    413: "The body is larger than may be.",
    429: "There is no room for one more request; Retry-After says when to ask again.",
    500: "The server's own fault; its log says more, under the request's id.",
    501: "A part of the protocol that this server does not have.",
    503: "The model, or the server, is not ready.",
    504: "The request's timeout passed before its answer was there.",
}
# Of whatever has a body.
OF_A_BODY = (400, 403, 408, 413)


def ref(name: str, kind: str = "schemas") -> Part:
    """A component."""
    return {"$ref": f"#/components/{kind}/{name}"}


def text(description: str = "", **more: Any) -> Part:
    """A string."""
    return _described({"type": "string"}, description, more)


def number(description: str = "", **more: Any) -> Part:
    """Any number."""
    return _described({"type": "number"}, description, more)


def whole(description: str = "", **more: Any) -> Part:
    """A whole number, that is not below 0 unless `minimum` says so."""
    return _described({"type": "integer", "minimum": 0}, description, more)


def share(description: str = "") -> Part:
    """A number from 0 to 1."""
    return number(description, minimum=0, maximum=1)


def truth(description: str = "") -> Part:
    """True or false."""
    return _described({"type": "boolean"}, description, {})


def one_of(values: Sequence[str], description: str = "") -> Part:
    """One of these texts."""
    return text(description, enum=list(values))


def array(items: Part, description: str = "", **more: Any) -> Part:
    """A list of these."""
    return _described({"type": "array", "items": items}, description, more)


def mapping(values: Part, description: str = "") -> Part:
    """By names that are not known beforehand."""
    return _described({"type": "object", "additionalProperties": values}, description, {})


def record(
    required: Mapping[str, Part],
    optional: Mapping[str, Part] | None = None,
    description: str = "",
    **more: Any,
) -> Part:
    """An object; more than is listed may come."""
    listed = {"type": "object", "properties": {**required, **(optional or {})}}
    must = {"required": list(required)} if required else {}
    return _described({**listed, **must}, description, more)


def or_null(schema: Part) -> Part:
    """That, or null where there is none."""
    if isinstance(schema.get("type"), str):
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def in_path(name: str, description: str, pattern: str) -> Part:
    """A part of the path."""
    schema = text(pattern=pattern)
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": schema,
    }


def in_query(name: str, description: str) -> Part:
    """What may stand after the question mark."""
    return {"name": name, "in": "query", "description": description, "schema": text()}


def in_header(name: str, description: str, schema: Part) -> Part:
    """A header that may be sent."""
    return {"name": name, "in": "header", "description": description, "schema": schema}


def content(**by_type: Part) -> Part:
    """One schema for JSON, or for each media type by its name in `MEDIA`."""
    return {MEDIA[name]: {"schema": schema} for name, schema in by_type.items()}


MEDIA = {
    "json": JSON,
    "binary": BINARY,
    "html": "text/html",
    "css": "text/css",
    "javascript": "text/javascript",
    "svg": "image/svg+xml",
    "png": "image/png",
    "jpeg": "image/jpeg",
}
# Bytes of whatever kind: since 3.1, what has no JSON type has no schema.
BYTES: Part = {}


def sent(required: bool = True, **by_type: Part) -> Part:
    """What is to be sent."""
    return {"required": required, "content": content(**by_type)}


def answer(description: str, **by_type: Part) -> Part:
    """A response; without a media type, one without a body."""
    response: Part = {"description": description, "headers": _HEADERS}
    return {**response, "content": content(**by_type)} if by_type else response


_HEADERS = {"X-Request-Id": ref("RequestId", "headers")}


def operation(
    name: str,
    tag: str,
    summary: str,
    answers: Mapping[int, Part],
    errors: Sequence[int] = (),
    *,
    parameters: Sequence[Part] = (),
    body: Part | None = None,
    description: str = "",
) -> Part:
    """One method of one path; errors by status, to which those of a body are added, and 500."""
    found = sorted({*errors, 500, *(OF_A_BODY if body else ())})
    responses = {str(status): each for status, each in answers.items()}
    responses |= {str(status): ref(f"Error{status}", "responses") for status in found}
    written: Part = {"operationId": name, "tags": [tag], "summary": summary}
    if description:
        written["description"] = description
    if parameters:
        written["parameters"] = list(parameters)
    if body:
        written["requestBody"] = body
    return {**written, "responses": responses}


def errors() -> Part:
    """The responses that `operation` refers to."""
    found = {f"Error{status}": answer(words, json=ref("Error")) for status, words in ERRORS.items()}
    retry = {"Retry-After": {"schema": whole("seconds")}}
    found["Error429"] = {**found["Error429"], "headers": {**_HEADERS, **retry}}
    return found


def _described(schema: Part, description: str, more: Mapping[str, Any]) -> Part:
    return {**schema, **more, **({"description": description} if description else {})}

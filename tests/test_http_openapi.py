"""The OpenAPI document against the application's own routes, and against itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast

import httpx
import pytest
from conftest import PATIENCE, Running, publish_times, running_server
from starlette.routing import Route

from serving.http.app import application
from serving.http.openapi import document

DOCUMENT = document("1.2.3")
OPERATIONS = [
    (path, method, operation)
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = tmp_path_factory.mktemp("models")
    publish_times(path)
    with running_server(path, allow_http=True, transport="grpcio") as server:
        yield server


def nameless(path: str) -> str:
    """Whatever the parts of a path are called, and are made of."""
    return re.sub(r"\{[^}]*\}", "{}", path)


def test_every_route_is_in_the_document_and_every_path_of_it_is_a_route(
    running: Running,
) -> None:
    routes = application(running.server.inference.services).routes
    served = {
        (nameless(route.path), method.lower())
        for route in cast(list[Route], routes)
        for method in (route.methods or set()) - {"HEAD"}
    }
    told = {(nameless(path), method) for path, method, _ in OPERATIONS}
    assert served - told == set()
    assert told - served == set()


def test_the_parameters_of_a_path_are_those_in_its_braces() -> None:
    for path, _, operation in OPERATIONS:
        told = [each for each in operation.get("parameters", ()) if each["in"] == "path"]
        assert [each["name"] for each in told] == re.findall(r"\{(\w+)\}", path)
        assert all(each["required"] for each in told)


def references(part: Any) -> Iterator[str]:
    """All that a part of the document refers to."""
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for each in part.values():
            yield from references(each)
    elif isinstance(part, list):
        for each in part:
            yield from references(each)


def test_every_component_is_referred_to_and_every_reference_is_one() -> None:
    there = {
        f"#/components/{kind}/{name}"
        for kind, components in DOCUMENT["components"].items()
        for name in components
    }
    assert set(references(DOCUMENT)) == there


def test_every_operation_has_a_name_of_its_own_and_what_can_go_wrong() -> None:
    names = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(set(names)) == len(names)
    for _, method, operation in OPERATIONS:
        assert "500" in operation["responses"]
        assert operation["summary"]
        if method == "get":
            assert "requestBody" not in operation
        elif "requestBody" in operation:
            assert {"400", "403", "408", "413"} <= set(operation["responses"])


def test_every_error_is_json_that_says_what_is_wrong() -> None:
    responses = DOCUMENT["components"]["responses"]
    for status in ("400", "403", "404", "413", "429", "500", "501", "503", "504"):
        content = responses[f"Error{status}"]["content"]
        assert content == {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}


def test_a_server_tells_its_own(running: Running) -> None:
    answer = httpx.get(f"{running.http_url}/openapi.json", timeout=PATIENCE)
    version = running.server.inference.services.v2.version
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == document(version)

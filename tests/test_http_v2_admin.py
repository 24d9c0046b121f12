"""What HTTP's V2 lets an administrator change, and whom it takes for none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
from conftest import PATIENCE, Running

Serve = Callable[..., AbstractContextManager[Running]]

LOAD, UNLOAD = (f"/v2/repository/models/echo/{each}" for each in ("load", "unload"))
CHANGES: tuple[tuple[str, dict[str, object]], ...] = (
    (LOAD, {}),
    (UNLOAD, {}),
    ("/v2/trace/setting", {"trace_rate": "7"}),
    ("/v2/models/classifier/trace/setting", {"trace_rate": "7"}),
    ("/v2/logging", {"log_verbose_level": 1}),
)


@pytest.fixture(scope="module")
def client(repository: Path, serve: Serve) -> Iterator[httpx.Client]:
    """Of a server that may be administered."""
    options: dict[str, object] = {"allow_http": True, "allow_admin": True}
    options |= {"model_control_mode": "explicit", "load_model": ("classifier",)}
    with (
        serve(repository, transport="grpcio", **options) as running,
        httpx.Client(base_url=running.http_url, timeout=PATIENCE) as found,
    ):
        yield found


def index(client: httpx.Client, **request: object) -> dict[str, str]:
    return {
        each["name"]: each["state"]
        for each in client.post("/v2/repository/index", json=request).json()
    }


def test_a_model_is_loaded_listed_and_unloaded(client: httpx.Client) -> None:
    assert client.get("/v2/models/echo").status_code == 503
    assert client.post(LOAD).json() == {"model_name": "echo", "is_loaded": True}
    assert client.get("/v2/models/echo/ready").status_code == 200
    assert index(client, ready=True) == {"classifier": "READY", "echo": "READY"}
    unload = {"parameters": {"unload_dependents": True}}
    assert client.post(UNLOAD, json=unload).json() == {"model_name": "echo", "is_unloaded": True}
    assert client.get("/v2/models/echo/ready").status_code == 503
    assert index(client)["echo"] == "UNAVAILABLE"
    assert index(client, ready=True) == {"classifier": "READY"}


def test_what_cannot_be_loaded_is_told(client: httpx.Client) -> None:
    answer = client.post("/v2/repository/models/nobody/load")
    assert (answer.status_code, "nobody" in answer.json()["error"]) == (404, True)
    answer = client.post(LOAD, json={"parameters": {"config": "{}"}})
    error = "load: parameter 'config' is not supported"
    assert (answer.status_code, answer.json()) == (400, {"error": error})


def test_trace_settings_are_told_changed_and_set_back(client: httpx.Client) -> None:
    before = client.get("/v2/trace/setting").json()
    assert before == {"trace_level": ["OFF"], "trace_rate": "1000", "trace_count": "-1"}
    changes = {"trace_rate": 7, "trace_level": ["TIMESTAMPS"]}
    after = client.post("/v2/models/classifier/trace/setting", json=changes).json()
    assert after == {"trace_level": ["TIMESTAMPS"], "trace_rate": "7", "trace_count": "-1"}
    assert client.get("/v2/models/classifier/trace/setting").json() == after
    assert client.get("/v2/trace/setting").json() == before
    reset = {"trace_rate": None, "trace_level": None}
    assert client.post("/v2/models/classifier/trace/setting", json=reset).json() == before
    assert client.get("/v2/models/nobody/trace/setting").status_code == 404


def test_log_settings_are_told_and_changed(client: httpx.Client) -> None:
    before = client.get("/v2/logging").json()
    assert sorted(before) == ["log_error", "log_info", "log_verbose_level", "log_warning"]
    assert (before["log_error"], before["log_verbose_level"]) == (True, 0)
    after = client.post("/v2/logging", json={"log_verbose_level": 1}).json()
    assert (after["log_info"], after["log_verbose_level"]) == (True, 1)
    assert client.post("/v2/logging", json=before).json() == before


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/v2/trace/setting", '{"colour": "green"}', "trace setting 'colour' is not supported"),
        ("/v2/trace/setting", '{"trace_rate": {}}', "trace setting 'trace_rate' must be a text"),
        ("/v2/trace/setting", '{"\\ud800": "1"}', "half of a surrogate pair"),
        ("/v2/logging", '{"log_info": null}', "log setting 'log_info' must be true, false"),
        ("/v2/logging", '{"log_verbose_level": -1}', "log setting 'log_verbose_level' must be"),
        ("/v2/logging", "[]", "the body must be an object, got an array"),
        ("/v2/repository/index", '{"ready": 1}', "'ready' must be true or false"),
        (LOAD, '{"parameters": []}', "'parameters' must be an object, got an array"),
    ],
)
def test_settings_that_are_none_are_400(
    client: httpx.Client, path: str, body: str, error: str
) -> None:
    answer = client.post(path, content=body)
    assert answer.status_code == 400
    assert error in answer.json()["error"]


def test_large_settings_are_413(client: httpx.Client) -> None:
    assert client.post("/v2/logging", content=b" " * 65_537).status_code == 413


@pytest.mark.parametrize(
    "host", ["digits.example:8000", "localhost.example", "", "1.2.3.4.example"]
)
def test_changes_are_taken_under_no_name_but_localhost(client: httpx.Client, host: str) -> None:
    for path, body in CHANGES:
        answer = client.post(path, json=body, headers={"Host": host})
        assert (path, answer.status_code) == (path, 403)
        assert "see the Host header" in answer.json()["error"]
    assert client.get("/v2/trace/setting", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1"])
def test_changes_are_taken_at_an_address_or_localhost(client: httpx.Client, host: str) -> None:
    body = {"trace_count": "-1"}
    assert client.post("/v2/trace/setting", json=body, headers={"Host": host}).status_code == 200


def test_changes_are_refused_unless_administration_is_allowed(
    repository: Path, serve: Serve
) -> None:
    with (
        serve(repository, allow_http=True, transport="grpcio") as running,
        httpx.Client(base_url=running.http_url) as own,
    ):
        for path, body in CHANGES:
            answer = own.post(path, json=body)
            error = "administration is off; it takes a token with the role admin, or --allow-admin"
            assert (path, answer.status_code) == (path, 403)
            assert answer.json() == {"error": error}
        assert own.post("/v2/trace/setting").json()["trace_rate"] == "1000"

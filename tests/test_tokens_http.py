"""Bearer tokens over HTTP: each route by its need, as gRPC's RPCs are; and administration."""

from __future__ import annotations

import http.client
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import cast

import httpx
import pytest
from conftest import PATIENCE, Running, publish_times
from starlette.routing import Route
from test_tokens import FILE, SECRETS, STRANGER

from serving.http.app import application
from serving.http.permissions import PATHS
from serving.tokens import Need

Serve = Callable[..., AbstractContextManager[Running]]
INFER = "/v2/models/times/infer"
DOUBLE = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [2.0]}]}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, serve: Serve) -> Iterator[Running]:
    path = tmp_path_factory.mktemp("models")
    publish_times(path)
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text(f"{FILE}\nslow infer {STRANGER}1 rate=0.01/s burst=2")
    options = {"model_control_mode": "explicit", "load_model": ("*",), "allow_http": True}
    with serve(path, transport="grpcio", token_file=tokens, **options) as running:
        yield running


@pytest.fixture(scope="module")
def client(guarded: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=guarded.http_url, timeout=PATIENCE) as found:
        yield found


def bearer(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def test_every_route_has_a_row_and_every_row_is_one(guarded: Running) -> None:
    routes = application(guarded.server.inference.services).routes
    assert {each.path for each in cast(list[Route], routes)} == set(PATHS)


@pytest.mark.parametrize("path", sorted(PATHS))
def test_a_route_is_for_those_whose_token_has_what_it_needs(
    guarded: Running, client: httpx.Client, path: str
) -> None:
    routes = cast(list[Route], application(guarded.server.inference.services).routes)
    methods = {method for each in routes if each.path == path for method in each.methods or ()}
    need = PATHS[path]
    url = path.format(model="nobody", name="nobody", version="1")
    for method in methods:
        for token in (None, STRANGER, *SECRETS.values()):
            answer = client.request(method, url, headers=bearer(token))
            roles = [role for role, secret in SECRETS.items() if secret == token]
            if need is Need.NOTHING or (roles and need in (Need.TOKEN, *roles)):
                assert answer.status_code not in (401, 403), answer.text
                continue
            assert answer.status_code == (403 if roles else 401)
            assert answer.headers.get("WWW-Authenticate") == (None if roles else "Bearer")
            if method != "HEAD":
                assert list(answer.json()) == ["error"]


def test_inference_takes_a_token_and_is_counted_without_one(
    guarded: Running, client: httpx.Client
) -> None:
    answer = client.post(INFER, json=DOUBLE, headers=bearer(SECRETS["infer"]))
    assert answer.json()["outputs"][0]["data"] == [2.0]
    before = refused(guarded)
    assert client.post(INFER, json=DOUBLE).status_code == 401
    assert client.post("/v1/classify", content=b"?").status_code == 401
    assert client.get("/v2").status_code == 401
    assert refused(guarded) - before == 2  # of inference


def refused(running: Running) -> float:
    """Requests without a good token."""
    page = httpx.get(running.metrics_url, timeout=PATIENCE).text
    (line,) = [
        each
        for each in page.splitlines()
        if each.startswith("inference_rejected_total{") and 'reason="unauthenticated"' in each
    ]
    return float(line.split()[-1])


def test_who_has_no_token_is_told_before_a_body_is_sent(guarded: Running) -> None:
    asked = http.client.HTTPConnection("localhost", guarded.server.http_port, timeout=PATIENCE)
    asked.putrequest("POST", INFER)
    asked.putheader("Content-Length", "1000000")
    asked.endheaders()
    assert asked.getresponse().status == 401
    asked.close()


def test_what_is_beyond_a_rate_is_told_when_to_come_again(client: httpx.Client) -> None:
    slow = bearer(f"{STRANGER}1")
    answers = [client.post(INFER, json=DOUBLE, headers=slow) for _ in range(3)]
    assert [each.status_code for each in answers] == [200, 200, 429]
    assert 90 < int(answers[2].headers["Retry-After"]) <= 100


def test_administration_takes_the_role_and_then_no_host_is_asked_for(
    client: httpx.Client,
) -> None:
    load = "/v2/repository/models/times/load"
    elsewhere = {"Host": "models.example.org"}
    answer = client.post(load, headers=bearer(SECRETS["admin"]) | elsewhere)
    assert answer.json() == {"model_name": "times", "is_loaded": True}
    assert client.post(load, headers=bearer(SECRETS["infer"])).status_code == 403
    # To read settings takes any token, to change them the role.
    change = {"log_verbose_level": 0}
    codes = {
        role: client.post("/v2/logging", json=change, headers=bearer(secret)).status_code
        for role, secret in SECRETS.items()
    }
    assert codes == {"infer": 403, "feedback": 403, "admin": 200}
    assert client.get("/v2/logging", headers=bearer(SECRETS["infer"])).status_code == 200


def test_a_token_is_in_no_answer_and_in_no_log(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    shown = []
    for secret in (*SECRETS.values(), STRANGER):
        for path in (INFER, "/v2", "/v1/overview", "/nowhere", "/v1/feedback"):
            answer = client.post(path, content=b"{", headers=bearer(secret))
            shown += [answer.text, json.dumps(dict(answer.headers))]
    own = [record.getMessage() for record in caplog.records if record.name.startswith("serving")]
    assert own
    for secret in (*SECRETS.values(), STRANGER):
        assert not any(secret in each for each in (*shown, *own))

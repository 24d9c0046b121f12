"""What HTTP's V2 refuses, with what words, and that none of it is the server's fault."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from conftest import PATIENCE, Running, publish_slow, slow_request, until
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from test_errors import example, subclasses

from serving.errors import ServingError
from serving.http.status import answering

Serve = Callable[..., AbstractContextManager[Running]]

LENGTH = "Inference-Header-Content-Length"
INFER = "/v2/models/echo_fixed/infer"
MIB = 2**20


@pytest.fixture(scope="module")
def web(repository: Path, serve: Serve) -> Iterator[Running]:
    with serve(repository, allow_http=True, transport="grpcio") as running:
        yield running


@pytest.fixture(scope="module")
def client(web: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=web.http_url, timeout=PATIENCE) as found:
        yield found


def test_every_serving_error_has_its_status_over_http() -> None:
    statuses = {}
    for kind in subclasses(ServingError):

        async def fail(request: Request, kind: type[ServingError] = kind) -> Response:
            raise example(kind)

        answer = _answer(fail)
        assert answer.json()["error"].startswith("why")
        statuses[kind.__name__] = answer.status_code
    assert statuses == {
        "ModelNotFound": 404,
        "ModelNotReady": 503,
        "BatcherClosed": 503,
        "InvalidInput": 400,
        "NoRoom": 429,
        "QueueFull": 429,
        "Overloaded": 429,
        "Draining": 503,
        "DeadlineExceeded": 504,
        "RequestCancelled": 499,
        "ModelFailed": 500,
        "NotAllowed": 403,
        "LoadFailed": 400,
        "NotSupported": 501,
        "RateLimited": 429,
        "Unauthenticated": 401,
    }


def _answer(endpoint: Any) -> httpx.Response:
    """Of an application of one endpoint."""

    async def ask() -> httpx.Response:
        app = Starlette(routes=[Route("/", answering(endpoint))])
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/")

    return anyio.run(ask)


def tensor(**changes: object) -> dict[str, Any]:
    return {"name": "in_INT8", "datatype": "INT8", "shape": [2, 3], "data": [1] * 6, **changes}


def of(**changes: object) -> bytes:
    """A request of one tensor, with changes; it is never whole, as the model takes thirteen."""
    return json.dumps({"inputs": [tensor(**changes)]}).encode()


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"\xff", "the body is not JSON: 'utf-8' codec can't decode byte 0xff"),
        (b"{'a': 1}", "the body is not JSON: Expecting property name"),
        (b"[" * 100_000, "the JSON is nested too deeply"),
        (b'{"id": ' + b"9" * 5000 + b"}", "the JSON has a number of too many digits"),
        (b'{"id": "a", "id": "b"}', "the JSON has 'id' twice in one object"),
        (b"[]", "the body must be an object, got an array"),
        (b"", "input 'in_BOOL' is missing"),
        (b'{"inputs": 5}', "the request: 'inputs' must be an array, got a whole number"),
        (b'{"inputs": [5]}', "the request: 'inputs' must hold objects, got a whole number"),
        (b'{"id": 5}', "the request: 'id' must be a text, got a whole number"),
        (b'{"id": "\\ud800"}', "a text of the JSON holds half of a surrogate pair"),
        (b'{"parameters": {"a": []}}', "the request: parameter 'a' must be a text, true, false"),
        (b'{"parameters": {"a": 18446744073709551616}}', "a number of 64 bits"),
        (b'{"parameters": {"\\ud800": 1}}', "half of a surrogate pair"),
        (b'{"parameters": {"timeout": -1}}', "parameter 'timeout' must be a whole number from 0"),
        (b'{"parameters": {"binary_data_output": 1}}', "'binary_data_output' must be true or"),
        (of(name=["x"]), "an input: 'name' must be a text, got an array"),
        (of(shape=[2, True]), "input 'in_INT8': 'shape' must hold whole numbers of 64 bits"),
        (of(shape=[2**63]), "input 'in_INT8': 'shape' must hold whole numbers of 64 bits"),
        (of(shape=[2**62] * 100_000), "input 'in_INT8': 'shape' has more than 64 dimensions"),
        (of(shape=[2, 2]), "shape [2, 2] takes 4 elements in data, got 6"),
        (of(shape=[2**62] * 8), "elements in data, got 6"),
        (of(data=None), "takes 6 elements in data, got 0"),
        (of(data="111111"), "input 'in_INT8': 'data' must be an array, got a text"),
        (of(data=[[1, 2], [3, 4], [5, 6]]), "data is nested otherwise than shape [2, 3]"),
        (of(data=[[1, 2, 3], 4]), "data is nested otherwise than shape [2, 3]"),
        (of(data=[[[1], [2], [3]]] * 2), "data is nested otherwise than shape [2, 3]"),
        (of(data=[1, 2, 3, 4, 5, [6]]), "INT8 takes whole numbers in data, got an array"),
        (of(data=[1, 2, 3, 4, 5, 6.0]), "INT8 takes whole numbers in data, got a fraction"),
        (of(data=[1, 2, 3, 4, 5, None]), "INT8 takes whole numbers in data, got null"),
        (of(data=[True] * 6), "INT8 takes whole numbers in data, got true or false"),
        (of(data=[1, 2, 3, 4, 5, 128]), "input 'in_INT8': data holds a value beyond INT8"),
        (of(datatype="UINT64", data=[-1] * 6), "data holds a value beyond UINT64"),
        (of(datatype="BOOL"), "BOOL takes true or false in data, got a whole number"),
        (of(datatype="BYTES"), "BYTES takes texts in data, got a whole number"),
        (of(datatype="BYTES", data=["\ud800"] * 6), "half of a surrogate pair"),
        (of(datatype="FP32", data=["one"] * 6), "'NaN', 'Infinity' and '-Infinity' in data"),
        (of(datatype="FP32", data=[1e39] * 6), "data holds a value beyond FP32"),
        (of(datatype="FP64", data=[10**400] * 6), "data holds a value beyond FP64"),
        (of(datatype="FP64", data=[1234] * 6).replace(b"1234", b"1e999"), "beyond FP64"),
        (of(datatype="FP16"), "FP16 is taken as binary data only, not in JSON"),
        (of(name="x"), "input 'x' is unknown"),
        (of(parameters={"binary_data_size": 6}), "input 'in_INT8': has data beside binary_"),
        (json.dumps({"inputs": [tensor(), tensor()]}).encode(), "'in_INT8' is given twice"),
        (b'{"inputs": [{"name": "x"}]}', "input 'x': has neither data nor binary_data_size"),
    ],
)
def test_a_body_that_is_no_request_is_400(client: httpx.Client, body: bytes, error: str) -> None:
    answer = client.post(INFER, content=body)
    assert answer.status_code == 400, answer.text
    assert error in answer.json()["error"]


OF_TENSORS = ("name", "datatype", "shape", "data", "binary_data_size")
KEYS = st.sampled_from((*OF_TENSORS, "id", "parameters", "inputs", "outputs", "timeout"))
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
    | st.sampled_from(["in_INT8", "INT8", "FP32", "BYTES", "images", 10**30, 2**63])
)  # fmt: skip
ANYTHING = st.recursive(
    LEAVES, lambda few: st.lists(few, max_size=6) | st.dictionaries(KEYS, few, max_size=6)
)
TENSORS = st.fixed_dictionaries(
    {"name": LEAVES, "datatype": LEAVES, "shape": st.lists(LEAVES, max_size=3), "data": ANYTHING},
    optional={"parameters": ANYTHING},
)
REQUESTS = ANYTHING | st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS, max_size=2)}, optional={"parameters": ANYTHING, "id": LEAVES}
)


@settings(max_examples=300)
@given(request=REQUESTS, cut=st.integers(-2, 50), binary=st.binary(max_size=8) | st.none())
def test_nothing_that_is_sent_is_the_servers_fault(
    client: httpx.Client, request: Any, cut: int, binary: bytes | None
) -> None:
    body = json.dumps(request).encode()
    headers = {} if binary is None else {LENGTH: str(len(body) - max(cut, 0))}
    answer = client.post(INFER, content=body + (binary or b""), headers=headers)
    assert (answer.status_code, list(answer.json())) == (400, ["error"])


def binary(size: object) -> bytes:
    given = tensor(parameters={"binary_data_size": size})
    del given["data"]
    return json.dumps({"inputs": [given]}).encode()


@pytest.mark.parametrize(
    ("header", "data", "length", "error"),
    [
        (binary(6), b"123456", "-1", f"{LENGTH} must be a whole number from 0, got '-1'"),
        (binary(6), b"123456", "9" * 5000, f"{LENGTH} must be a whole number from 0"),
        (binary(6), b"123456", "999", f"{LENGTH} is 999, and the body has "),
        (binary(7), b"123456", None, "binary_data_size is 7, and 6 bytes of binary data are left"),
        (binary(-1), b"123456", None, "binary_data_size is -1, and 6 bytes"),
        (binary("6"), b"123456", None, "'binary_data_size' must be a whole number, got a text"),
        (binary(True), b"1", None, "'binary_data_size' must be a whole number, got true or false"),
        (binary(5), b"123456", None, "1 bytes of binary data are no input's"),
        (of(), b"1", None, "1 bytes of binary data are no input's"),
    ],
)
def test_binary_data_that_does_not_add_up_is_400(
    client: httpx.Client, header: bytes, data: bytes, length: str | None, error: str
) -> None:
    headers = {LENGTH: length or str(len(header))}
    answer = client.post(INFER, content=header + data, headers=headers)
    assert answer.status_code == 400
    assert error in answer.json()["error"]


def test_json_of_more_than_4_mib_is_413_and_names_the_binary_extension(
    client: httpx.Client,
) -> None:
    answer = client.post(INFER, content=b" " * (4 * MIB + 1))
    assert answer.status_code == 413
    assert f"larger than 4194304 bytes, which is for JSON; with {LENGTH}" in answer.json()["error"]
    header = b" " * (4 * MIB + 1)
    answer = client.post(INFER, content=header, headers={LENGTH: str(len(header))})
    assert (answer.status_code, "the JSON is larger" in answer.json()["error"]) == (413, True)


def test_a_body_that_inflates_beyond_bounds_is_413(client: httpx.Client) -> None:
    bomb = zlib.compress(b" " * (64 * MIB), 9)
    assert len(bomb) < MIB / 8
    for headers in ({}, {LENGTH: "2"}):
        answer = client.post(INFER, content=bomb, headers={"Content-Encoding": "deflate"} | headers)
        assert answer.status_code == 413
        assert "once inflated" in answer.json()["error"]


@pytest.mark.parametrize(
    ("encoding", "body", "status", "error"),
    [
        ("gzip", b"{}", 400, "the body is not gzip"),
        ("deflate", zlib.compress(b"{}")[:-1], 400, "not one whole stream of deflate"),
        ("deflate", zlib.compress(b"{}") + b"more", 400, "not one whole stream of deflate"),
        ("br", b"{}", 415, "Content-Encoding 'br' is not known; there is gzip, deflate"),
    ],
)
def test_an_encoding_that_is_not_what_it_says_is_refused(
    client: httpx.Client, encoding: str, body: bytes, status: int, error: str
) -> None:
    answer = client.post(INFER, content=body, headers={"Content-Encoding": encoding})
    assert answer.status_code == status
    assert error in answer.json()["error"]


def test_no_model_version_or_path_is_404_and_no_method_405(client: httpx.Client) -> None:
    for path in (
        "/v2/models/nobody",
        "/v2/models/echo/versions/9/config",
        "/v2/models/nobody/stats",
    ):
        answer = client.get(path)
        assert (answer.status_code, list(answer.json())) == (404, ["error"])
    assert client.get("/v2/models/echo/nothing").status_code == 404
    assert client.get(INFER).status_code == 405
    assert client.post("/v2/models/echo").status_code == 405


def test_what_is_malformed_is_counted_as_over_grpc(web: Running, client: httpx.Client) -> None:
    def count() -> float:
        page = httpx.get(web.metrics_url).text
        lines = (line for line in page.splitlines() if line.startswith("inference_requests_total"))
        return sum(float(line.split()[-1]) for line in lines if "INVALID_ARGUMENT" in line)

    before = count()
    client.post(INFER, content=b"{")
    client.post(INFER, content=of(name="x"))
    assert count() - before == 2


def test_what_there_is_no_room_for_is_429_unread(serve: Serve, tmp_path: Path) -> None:
    publish_slow(tmp_path)
    options = {"max_batch_size": 1, "max_in_flight": 2, "allow_http": True}
    with serve(tmp_path, transport="grpcio", **options) as own, httpx.Client() as client:
        url = f"{own.http_url}/v2/models/slow/infer"

        def one_is_refused() -> bool:
            calls: list[Any] = [own.stub.ModelInfer.future(slow_request()) for _ in range(20)]
            answer = client.post(url, content=b"{", timeout=PATIENCE)
            for call in calls:
                call.cancel()
            return answer.status_code == 429

        until(one_is_refused)
        assert own.server.inference.wait_until_idle(PATIENCE)
        assert client.post(url, content=b"{").status_code == 400


def test_a_crowded_model_is_429_and_says_when_to_come_back(serve: Serve, tmp_path: Path) -> None:
    publish_slow(tmp_path)
    options = {"max_batch_size": 1, "max_queue_size": 1, "allow_http": True}
    row = {"name": "x", "datatype": "FP32", "shape": [1, 1024], "data": [0.0] * 1024}
    retry_after: list[str] = []
    with (
        serve(tmp_path, transport="grpcio", **options) as own,
        httpx.Client(timeout=PATIENCE) as client,
    ):
        url = f"{own.http_url}/v2/models/slow/infer"

        def one_is_refused() -> bool:
            calls: list[Any] = [own.stub.ModelInfer.future(slow_request()) for _ in range(20)]
            answer = client.post(url, json={"inputs": [row]})
            for call in calls:
                call.cancel()
            if answer.status_code == 429:
                retry_after.append(answer.headers["retry-after"])
            return bool(retry_after)

        until(one_is_refused)
    assert int(retry_after[0]) >= 1

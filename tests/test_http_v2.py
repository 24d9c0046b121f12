"""V2 over HTTP, against a real server: what gRPC answers, in JSON and in binary tensors."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import socket
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from conftest import ECHO_TYPES, PATIENCE, Digits, Running, publish_echo
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from serving.datatypes import DATATYPES, Array, decode_raw, encode_raw
from serving.pb import inference_pb2 as pb

Serve = Callable[..., AbstractContextManager[Running]]

LENGTH = "Inference-Header-Content-Length"
INFER = "/v2/models/classifier/infer"


@pytest.fixture(scope="module")
def web(repository: Path, serve: Serve, transport: str) -> Iterator[Running]:
    """A server that answers HTTP, beside each transport."""
    with serve(repository, allow_http=True, transport=transport) as running:
        yield running


@pytest.fixture(scope="module")
def client(web: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=web.http_url, timeout=PATIENCE) as found:
        yield found


def json_request(images: NDArray[Any], **more: object) -> dict[str, Any]:
    tensor = {"name": "images", "datatype": "UINT8", "shape": list(images.shape)}
    return {"inputs": [{**tensor, "data": images.tolist()}], **more}


def binary_request(
    tensors: Mapping[str, tuple[str, Array]], **more: object
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request whose tensors, by name, are all binary data."""
    raw = [encode_raw(DATATYPES[kind], array) for kind, array in tensors.values()]
    inputs = [
        {
            "name": name,
            "datatype": kind,
            "shape": list(array.shape),
            "parameters": {"binary_data_size": len(data)},
        }
        for (name, (kind, array)), data in zip(tensors.items(), raw, strict=True)
    ]
    header = json.dumps({"inputs": inputs, **more}).encode()
    return b"".join((header, *raw)), {LENGTH: str(len(header))}


def binary_outputs(answer: httpx.Response) -> dict[str, bytes]:
    """The outputs of an answer of which all are binary data."""
    assert answer.status_code == 200, answer.text
    at = int(answer.headers[LENGTH])
    found = {}
    for output in json.loads(answer.content[:at])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        found[output["name"]] = answer.content[at : at + size]
        at += size
    assert at == len(answer.content)
    return found


def grpc_request(images: NDArray[Any], model: str = "classifier") -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[images.tobytes()])
    request.inputs.add(name="images", datatype="UINT8", shape=images.shape)
    return request


def test_the_server_is_live_and_ready_and_head_says_so_too(client: httpx.Client) -> None:
    for path, body in (("live", {"live": True}), ("ready", {"ready": True})):
        answer = client.get(f"/v2/health/{path}")
        assert (answer.status_code, answer.json()) == (200, body)
        head = client.head(f"/v2/health/{path}")
        assert (head.status_code, head.content) == (200, b"")


def test_a_server_without_models_is_live_and_not_ready(serve: Serve, tmp_path: Path) -> None:
    with serve(tmp_path, allow_http=True, transport="grpcio") as empty:
        assert httpx.get(f"{empty.http_url}/v2/health/live").status_code == 200
        ready = httpx.get(f"{empty.http_url}/v2/health/ready")
    assert (ready.status_code, ready.json()) == (503, {"ready": False})


def test_a_model_is_ready_or_not_by_name_and_version(client: httpx.Client) -> None:
    ready = {
        path: client.get(f"/v2/models/{path}/ready")
        for path in ("classifier", "classifier/versions/1", "classifier/versions/9", "nobody")
    }
    assert {path: answer.status_code for path, answer in ready.items()} == {
        "classifier": 200,
        "classifier/versions/1": 200,
        "classifier/versions/9": 503,
        "nobody": 503,
    }
    assert ready["classifier"].json() == {"name": "classifier", "ready": True}
    assert ready["nobody"].json() == {"name": "nobody", "ready": False}


def test_metadata_is_what_the_protocol_shows(client: httpx.Client) -> None:
    server = client.get("/v2").json()
    assert server["name"] == "digits"
    assert {"binary_tensor_data", "statistics", "classification"} <= set(server["extensions"])
    model = client.get("/v2/models/classifier/versions/1").json()
    assert model["versions"] == ["1"]
    assert model["labels"] == ["3", "7"]
    assert model["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 28, 28]}]
    assert client.get("/v2/models/classifier").json() == model


def test_the_config_has_numbers_for_64_bits_and_names_for_enums(client: httpx.Client) -> None:
    config = client.get("/v2/models/classifier/config").json()
    assert (config["name"], config["max_batch_size"]) == ("classifier", 64)
    assert config["input"][0]["data_type"] == "TYPE_UINT8"
    assert config["input"][0]["dims"] == [28, 28]
    assert config["instance_group"][0]["kind"] == "KIND_CPU"
    assert config["parameters"]["precision"] == {"string_value": "fp32"}


def test_statistics_are_those_of_grpc_and_grow_with_requests_of_http(
    client: httpx.Client, web: Running, digits: Digits
) -> None:
    (before,) = client.get("/v2/models/classifier/stats").json()["model_stats"]
    assert client.post(INFER, json=json_request(digits.images[:3])).status_code == 200
    (after,) = client.get("/v2/models/classifier/versions/1/stats").json()["model_stats"]
    assert after["inference_count"] - before["inference_count"] == 3
    assert after["inference_stats"]["success"]["ns"] > before["inference_stats"]["success"]["ns"]
    request = pb.ModelStatisticsRequest(name="classifier")
    (told,) = web.stub.ModelStatistics(request).model_stats
    assert after["inference_stats"]["success"]["ns"] == told.inference_stats.success.ns
    everything = client.get("/v2/models/stats").json()["model_stats"]
    assert [each["name"] for each in everything] == ["classifier", "echo", "echo_fixed"]


def test_an_answer_has_id_version_prediction_ids_and_what_it_cost(
    client: httpx.Client, digits: Digits
) -> None:
    answer = client.post(INFER, json=json_request(digits.images[:2], id="seven"))
    body = answer.json()
    assert (body["id"], body["model_name"], body["model_version"]) == ("seven", "classifier", "1")
    assert len(set(body["parameters"]["prediction_ids"].split(","))) == 2
    shapes = {each["name"]: (each["datatype"], each["shape"]) for each in body["outputs"]}
    assert shapes == {"probabilities": ("FP32", [2, 2]), "labels": ("INT64", [2])}
    assert answer.headers["content-type"] == "application/json"
    assert (answer.headers["batch-size"], answer.headers["model-version"]) == ("2", "1")
    assert answer.headers["server-timing"].startswith("queue;dur=")


def test_an_answer_is_that_of_grpc_flat_or_nested_or_binary(
    client: httpx.Client, web: Running, digits: Digits
) -> None:
    images = digits.images[:5]
    told = web.stub.ModelInfer(grpc_request(images)).raw_output_contents
    nested = json_request(images)
    flat = json_request(images)
    flat["inputs"][0]["data"] = images.reshape(-1).tolist()
    for request in (nested, flat):
        outputs = client.post(INFER, json=request).json()["outputs"]
        found = {each["name"]: each["data"] for each in outputs}
        assert np.array(found["probabilities"], "<f4").tobytes() == told[0]
        assert np.array(found["labels"], "<i8").tobytes() == told[1]
    parameters = {"binary_data_output": True}
    body, headers = binary_request({"images": ("UINT8", images)}, parameters=parameters)
    answer = client.post(INFER, content=body, headers=headers)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert binary_outputs(answer) == {"probabilities": told[0], "labels": told[1]}


def test_each_output_is_binary_or_json_as_it_is_asked_for(
    client: httpx.Client, digits: Digits
) -> None:
    outputs = [
        {"name": "labels", "parameters": {"binary_data": False}},
        {"name": "probabilities"},
        {"name": "probabilities", "parameters": {"classification": 1, "binary_data": False}},
    ]
    parameters = {"binary_data_output": True, "priority": 1, "timeout": 60_000_000}
    request = json_request(digits.images[:1], outputs=outputs, parameters=parameters)
    answer = client.post(INFER, json=request)
    length = int(answer.headers[LENGTH])
    labels, probabilities, classes = json.loads(answer.content[:length])["outputs"]
    raw = np.frombuffer(answer.content[length:], "<f4")
    assert probabilities["parameters"] == {"binary_data_size": 8}
    assert labels["data"] == [int(raw.argmax())]
    name = ("3", "7")[labels["data"][0]]
    assert (classes["datatype"], classes["shape"]) == ("BYTES", [1, 1])
    assert classes["data"] == [f"{raw.max():f}:{labels['data'][0]}:{name}"]


@pytest.mark.parametrize(("encoding", "wbits"), [("gzip", 31), ("deflate", 15)])
def test_bodies_are_read_and_answered_in_the_encoding_that_is_asked_for(
    client: httpx.Client, digits: Digits, encoding: str, wbits: int
) -> None:
    images = digits.images[:60]
    body, headers = binary_request({"images": ("UINT8", images)})
    plain = client.post(INFER, content=body, headers={**headers, "Accept-Encoding": ""})
    assert "content-encoding" not in plain.headers
    encode = gzip.compress if encoding == "gzip" else zlib.compress
    headers |= {"Content-Encoding": encoding, "Accept-Encoding": f"br, {encoding};q=0.5, x;q=no"}
    with client.stream("POST", INFER, content=encode(body), headers=headers) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == encoding
    found = json.loads(zlib.decompress(raw, wbits))
    assert found["outputs"] == plain.json()["outputs"]


def test_a_small_answer_is_not_compressed(client: httpx.Client, digits: Digits) -> None:
    headers = {"Accept-Encoding": "gzip"}
    answer = client.post(INFER, json=json_request(digits.images[:1]), headers=headers)
    assert (answer.status_code, "content-encoding" in answer.headers) == (200, False)


@pytest.fixture(scope="module")
def echoes(
    tmp_path_factory: pytest.TempPathFactory, serve: Serve, transport: str
) -> Iterator[tuple[Running, httpx.Client]]:
    """A server with a model for each datatype, `echo_fp32` and so on, of rows of three."""
    path = tmp_path_factory.mktemp(f"echoes-{transport}")
    for name, kind in ECHO_TYPES.items():
        publish_echo(path, f"echo_{name.lower()}", (-1, 3), {name: kind})
    with (
        serve(path, allow_http=True, transport=transport) as running,
        httpx.Client(base_url=running.http_url, timeout=PATIENCE) as found,
    ):
        yield running, found


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, Array]:
    """A datatype, and an array of it of some rows of three."""
    datatype = draw(st.sampled_from(sorted(ECHO_TYPES)))
    shape = (draw(st.integers(1, 4)), 3)
    if datatype == "BYTES":
        texts = draw(st.lists(st.text(max_size=5), min_size=3 * shape[0], max_size=3 * shape[0]))
        return datatype, np.array(texts, object).reshape(shape)
    return datatype, draw(arrays.arrays(DATATYPES[datatype].dtype, shape))


def as_json(array: Array) -> Any:
    """The array's values, with texts for those that JSON has no number for."""
    names = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    if array.dtype.kind != "f":
        return array.tolist()
    return [[names.get(str(v), v) for v in row] for row in array.tolist()]


@settings(max_examples=150)
@given(tensor=tensors(), nested=st.booleans())
def test_any_tensor_is_answered_as_over_grpc(
    echoes: tuple[Running, httpx.Client], tensor: tuple[str, Array], nested: bool
) -> None:
    running, client = echoes
    datatype, array = tensor
    kind, model = DATATYPES[datatype], f"echo_{datatype.lower()}"
    raw = encode_raw(kind, array)
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[raw])
    request.inputs.add(name=f"in_{datatype}", datatype=datatype, shape=array.shape)
    (told,) = running.stub.ModelInfer(request).raw_output_contents
    url = f"/v2/models/{model}/infer"

    parameters = {"binary_data_output": True}
    body, headers = binary_request({f"in_{datatype}": (datatype, array)}, parameters=parameters)
    found = binary_outputs(client.post(url, content=body, headers=headers))
    assert found == {f"out_{datatype}": told}

    data = as_json(array) if nested else [value for row in as_json(array) for value in row]
    shown = {"name": f"in_{datatype}", "datatype": datatype, "shape": list(array.shape)}
    answer = client.post(url, json={"inputs": [{**shown, "data": data}]})
    if datatype == "FP16":
        assert answer.status_code == 400
        assert "FP16 is taken as binary data only" in answer.json()["error"]
        return
    (output,) = answer.json()["outputs"]
    assert (output["datatype"], output["shape"]) == (datatype, list(array.shape))
    back = np.array(output["data"], kind.dtype).reshape(array.shape)
    np.testing.assert_array_equal(back, decode_raw("told", kind, array.shape, told))


def test_what_json_has_no_number_for_comes_as_text_and_may_be_sent_as_javascript_has_it(
    echoes: tuple[Running, httpx.Client],
) -> None:
    given = '{"inputs":[{"name":"in_FP32","datatype":"FP32","shape":[1,3],"data":[%s]}]}'
    answer = echoes[1].post("/v2/models/echo_fp32/infer", content=given % "NaN,-Infinity,1e1")
    assert answer.json()["outputs"][0]["data"] == ["NaN", "-Infinity", 10.0]


def test_fp16_outputs_come_as_binary_data_only(echoes: tuple[Running, httpx.Client]) -> None:
    array = np.array([[0.5, -1.0, 65504.0]], "<f2")
    body, headers = binary_request({"in_FP16": ("FP16", array)})
    answer = echoes[1].post("/v2/models/echo_fp16/infer", content=body, headers=headers)
    error = "output 'out_FP16': FP16 is given as binary data only, not in JSON"
    assert (answer.status_code, answer.json()) == (400, {"error": error})


def test_a_mistake_is_told_in_the_words_of_grpc(
    client: httpx.Client, web: Running, digits: Digits
) -> None:
    requests = [grpc_request(digits.images[:1], model="nobody")]
    requests += [grpc_request(digits.images[:rows]) for rows in (1, 1, 1, 1, 65)]
    requests[1].model_version = "9"
    requests[2].outputs.add(name="logits")
    requests[3].inputs[0].datatype = "FP33"
    requests[4].inputs[0].name = "pictures"
    for request in requests:
        with pytest.raises(grpc.RpcError) as caught:
            web.stub.ModelInfer(request)
        tensor = request.inputs[0]
        version = f"/versions/{request.model_version}" if request.model_version else ""
        body = {
            "inputs": [
                {
                    "name": tensor.name,
                    "datatype": tensor.datatype,
                    "shape": list(tensor.shape),
                    "data": list(request.raw_input_contents[0]),
                }
            ],
            "outputs": [{"name": output.name} for output in request.outputs],
        }
        answer = client.post(f"/v2/models/{request.model_name}{version}/infer", json=body)
        statuses = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND"}
        assert statuses[answer.status_code] == caught.value.code().name
        assert answer.json() == {"error": caught.value.details()}


def test_no_answer_waits_for_its_headers_to_be_acknowledged(
    client: httpx.Client, web: Running
) -> None:
    """Its connection is without Nagle's algorithm, which may cost 40 ms."""
    assert client.get("/v2").status_code == 200
    port = int(web.http_url.rpartition(":")[2])
    delays = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(number))) as found:
            if found.getpeername() and found.getsockname()[1] == port:
                delays.append(found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0)
    assert set(delays) == {False}


def test_shared_memory_is_not_there_and_says_so(client: httpx.Client) -> None:
    words = "this server has no shared memory; send tensors in the request"
    for answer in (
        client.get("/v2/systemsharedmemory/status"),
        client.get("/v2/cudasharedmemory/region/a/status"),
        client.post("/v2/systemsharedmemory/region/a/register", json={}),
        client.post("/v2/cudasharedmemory/unregister"),
    ):
        assert (answer.status_code, answer.json()) == (501, {"error": words})
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 28, 28]}
    request = {"inputs": [{**tensor, "parameters": {"shared_memory_region": "a"}}]}
    answer = client.post(INFER, json=request)
    error = "input 'images': shared memory is not supported"
    assert (answer.status_code, answer.json()) == (400, {"error": error})

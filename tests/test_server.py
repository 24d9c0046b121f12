"""The server end to end: a real gRPC server, real models, and what happens to bad requests."""

from __future__ import annotations

import signal
import socket
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import grpc
import numpy as np
import pytest
from conftest import (
    ECHO_TYPES,
    LIFETIME,
    PATIENCE,
    Digits,
    Running,
    publish_classifier,
    server_process,
)
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from prometheus_client.parser import text_string_to_metric_families

from serving.datatypes import DATATYPES, encode_raw
from serving.pb import inference_pb2 as pb
from serving.pb import inference_pb2_grpc as pb_grpc

Serve = Callable[..., AbstractContextManager[Running]]
CODE = grpc.StatusCode
HEALTH = health_pb2.HealthCheckResponse


def images_request(
    images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], model: str = "classifier"
) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[images.tobytes()])
    request.inputs.add(name="images", datatype="UINT8", shape=images.shape)
    return request


def failure(running: Running, request: pb.ModelInferRequest) -> tuple[grpc.StatusCode, str | None]:
    with pytest.raises(grpc.RpcError) as caught:
        running.stub.ModelInfer(request, timeout=PATIENCE)
    return caught.value.code(), caught.value.details()


def metric(running: Running, name: str, **labels: str) -> float:
    text = urllib.request.urlopen(running.metrics_url, timeout=PATIENCE).read().decode()
    samples = (
        sample for family in text_string_to_metric_families(text) for sample in family.samples
    )
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def test_the_server_is_live_and_ready_and_says_what_it_is(running: Running) -> None:
    stub = running.stub
    assert stub.ServerLive(pb.ServerLiveRequest()).live
    assert stub.ServerReady(pb.ServerReadyRequest()).ready
    assert stub.ModelReady(pb.ModelReadyRequest(name="classifier")).ready
    assert stub.ServerMetadata(pb.ServerMetadataRequest()).name == "digits"


def test_metadata_repeats_the_manifest(running: Running) -> None:
    metadata = running.stub.ModelMetadata(pb.ModelMetadataRequest(name="classifier"))
    assert (metadata.name, list(metadata.versions)) == ("classifier", ["1"])
    assert metadata.platform == "onnx_onnxv1"
    assert list(metadata.labels) == ["3", "7"]
    tensors = [(t.name, t.datatype, list(t.shape)) for t in (*metadata.inputs, *metadata.outputs)]
    assert tensors == [
        ("images", "UINT8", [-1, 28, 28]),
        ("probabilities", "FP32", [-1, 2]),
        ("labels", "INT64", [-1]),
    ]


def test_an_answer_echoes_the_id_and_names_model_and_version(
    running: Running, digits: Digits
) -> None:
    request = images_request(digits.images[:3])
    request.id = "no. 5"
    response = running.stub.ModelInfer(request)
    assert (response.id, response.model_name, response.model_version) == (
        "no. 5",
        "classifier",
        "1",
    )
    assert [(o.name, o.datatype, list(o.shape)) for o in response.outputs] == [
        ("probabilities", "FP32", [3, 2]),
        ("labels", "INT64", [3]),
    ]
    labels = np.frombuffer(response.raw_output_contents[1], np.int64)
    assert labels.tolist() == digits.classes[:3].tolist()


def test_typed_contents_give_the_same_answer_as_raw_ones(running: Running, digits: Digits) -> None:
    raw = images_request(digits.images[:2])
    typed = images_request(digits.images[:2])
    del typed.raw_input_contents[:]
    typed.inputs[0].contents.uint_contents.extend(digits.images[:2].flatten().tolist())
    answers = [running.stub.ModelInfer(request) for request in (typed, raw)]
    ids = {answer.parameters.pop("prediction_ids").string_param for answer in answers}
    assert len(ids) == 2
    assert answers[0] == answers[1]


def test_only_the_requested_outputs_come_back_in_their_order(
    running: Running, digits: Digits
) -> None:
    request = images_request(digits.images[:1])
    for name in ("labels", "probabilities"):
        request.outputs.add(name=name)
    response = running.stub.ModelInfer(request)
    assert [output.name for output in response.outputs] == ["labels", "probabilities"]
    del request.outputs[1]
    assert len(running.stub.ModelInfer(request).raw_output_contents) == 1


@pytest.mark.parametrize(("model", "shape"), [("echo", (4, 3)), ("echo_fixed", (2, 3))])
def test_every_datatype_goes_through_a_model_unchanged(
    running: Running, model: str, shape: tuple[int, int]
) -> None:
    request = pb.ModelInferRequest(model_name=model)
    for name in ECHO_TYPES:
        array = np.arange(np.prod(shape)).reshape(shape) % 2
        kind = DATATYPES[name]
        request.inputs.add(name=f"in_{name}", datatype=name, shape=shape)
        request.raw_input_contents.append(encode_raw(kind, array.astype(kind.dtype)))
    response = running.stub.ModelInfer(request)
    assert [output.datatype for output in response.outputs] == list(ECHO_TYPES)
    assert response.raw_output_contents == request.raw_input_contents


def test_an_unknown_model_or_version_is_not_found(running: Running, digits: Digits) -> None:
    request = images_request(digits.images[:1], "resnet")
    assert failure(running, request) == (CODE.NOT_FOUND, "model 'resnet' is unknown")
    request.model_name, request.model_version = "classifier", "9"
    assert failure(running, request)[0] == CODE.NOT_FOUND
    assert not running.stub.ModelReady(pb.ModelReadyRequest(name="resnet")).ready


def test_bad_requests_are_invalid_arguments_that_say_why(running: Running, digits: Digits) -> None:
    truncated = images_request(digits.images[:2])
    truncated.raw_input_contents[0] = truncated.raw_input_contents[0][:-1]
    floats = images_request(digits.images[:1])
    floats.inputs[0].datatype = "FP32"
    unknown = images_request(digits.images[:1])
    unknown.outputs.add(name="logits")
    crowd = images_request(np.zeros((65, 28, 28), np.uint8))
    assert [failure(running, each) for each in (truncated, floats, unknown, crowd)] == [
        (
            CODE.INVALID_ARGUMENT,
            "input 'images': UINT8 [2, 28, 28] takes 1568 bytes, got 1567",
        ),
        (CODE.INVALID_ARGUMENT, "input 'images': expected datatype UINT8, got 'FP32'"),
        (
            CODE.INVALID_ARGUMENT,
            "output 'logits' is unknown; there is 'probabilities', 'labels'",
        ),
        (CODE.INVALID_ARGUMENT, "the request has 65 rows, at most 64 are allowed"),
    ]


def test_a_model_name_of_a_megabyte_is_refused_and_the_server_goes_on(
    running: Running, digits: Digits
) -> None:
    code, details = failure(running, images_request(digits.images[:1], "x" * 2**20))
    assert (code, len(details or "")) == (CODE.NOT_FOUND, 1000)
    assert running.stub.ServerLive(pb.ServerLiveRequest()).live


def test_a_message_beyond_the_limit_is_refused(
    serve: Serve, repository: Path, digits: Digits
) -> None:
    with serve(repository, max_message_bytes=1024) as small:
        assert failure(small, images_request(digits.images[:2]))[0] == CODE.RESOURCE_EXHAUSTED


def test_requests_are_counted_by_model_and_status_and_rows_and_batches_by_model(
    serve: Serve, repository: Path, digits: Digits
) -> None:
    with serve(repository) as own:
        own.stub.ModelInfer(images_request(digits.images[:3]))
        own.stub.ModelInfer(images_request(digits.images[:2]))
        failure(own, images_request(np.zeros((65, 28, 28), np.uint8)))
        failure(own, images_request(digits.images[:1], "nosuch"))
        label = {"model": "classifier", "version": "1"}
        assert metric(own, "inference_requests_total", code="OK", **label) == 2
        assert metric(own, "inference_requests_total", code="INVALID_ARGUMENT", **label) == 1
        assert metric(own, "inference_requests_total", code="NOT_FOUND", model="", version="") == 1
        assert metric(own, "inference_inferences_total", **label) == 5
        assert metric(own, "inference_executions_total", **label) == 2
        assert metric(own, "inference_batch_rows_sum", **label) == 5
        for name in ("request", "queue", "compute_infer"):
            assert metric(own, f"inference_{name}_seconds_count", **label) == 2
        assert metric(own, "inference_model_ready", **label) == 1
        assert metric(own, "inference_pending_requests", **label) == 0
        text = urllib.request.urlopen(own.metrics_url, timeout=PATIENCE).read().decode()
        assert "nosuch" not in text


def test_health_is_answered_for_the_server_and_for_each_model(running: Running) -> None:
    stub = health_pb2_grpc.HealthStub(running.channel)
    for service in ("", "liveness", "readiness", "startup", "classifier", "echo"):
        request = health_pb2.HealthCheckRequest(service=service)
        assert stub.Check(request).status == HEALTH.SERVING


def test_a_broken_model_is_unavailable_beside_a_good_one(
    serve: Serve, tmp_path: Path, digits: Digits
) -> None:
    (publish_classifier(tmp_path, digits, "broken") / "model.onnx").write_bytes(b"")
    publish_classifier(tmp_path, digits)
    with serve(tmp_path) as own:
        assert own.stub.ModelInfer(images_request(digits.images[:1])).model_version == "1"
        assert failure(own, images_request(digits.images[:1], "broken"))[0] == CODE.UNAVAILABLE
        assert not own.stub.ModelReady(pb.ModelReadyRequest(name="broken")).ready
        request = health_pb2.HealthCheckRequest(service="broken")
        status = health_pb2_grpc.HealthStub(own.channel).Check(request).status
        assert status == HEALTH.NOT_SERVING


def test_reflection_describes_the_service(running: Running) -> None:
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(running.channel))
    service = pool.FindServiceByName("inference.GRPCInferenceService")
    assert "ModelInfer" in service.methods_by_name


def test_concurrent_requests_each_get_their_own_answer(running: Running, digits: Digits) -> None:
    requests = [images_request(digits.images[i : i + 1 + i % 3]) for i in range(200)]
    futures = [running.stub.ModelInfer.future(request, timeout=PATIENCE) for request in requests]
    alone = [running.stub.ModelInfer(request) for request in requests]
    for future, expected in zip(futures, alone, strict=True):
        assert future.result().raw_output_contents[1] == expected.raw_output_contents[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_is_in_flight_finish_and_exits_with_0(
    repository: Path, digits: Digits, number: signal.Signals
) -> None:
    # The watch below stays open: were it waited for, the server would not end within LIFETIME.
    arguments = ["--model-repository", str(repository), "--max-queue-delay", "1"]
    arguments += ["--drain-timeout", str(2 * LIFETIME)]
    with server_process(*arguments) as process:
        address = process.wait_for(r"gRPC on (\S+),")[1]
        with grpc.insecure_channel(address) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == HEALTH.SERVING
            future = stub.ModelInfer.future(images_request(digits.images[:1]), timeout=PATIENCE)
            stub.ServerLive(pb.ServerLiveRequest())  # sent later on the same connection
            process.popen.send_signal(number)
            assert next(watch).status == HEALTH.NOT_SERVING
            process.popen.send_signal(signal.SIGTERM)  # once more changes nothing
            assert future.result().model_name == "classifier"
            assert process.finish() == 0
        assert process.log[-1].endswith("drained\n")


def test_a_port_that_is_taken_is_one_clear_line(repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for flag in ("--grpc-port", "--metrics-port", "--http-port"):
            with server_process("--model-repository", str(repository), flag, port) as process:
                assert process.finish() == 1
                address = f"127.0.0.1:{port}"
                assert process.log == [
                    f"error: {flag}: cannot listen on {address}: Address already in use\n"
                ]


def test_a_missing_repository_is_one_clear_line(tmp_path: Path) -> None:
    with server_process("--model-repository", str(tmp_path / "nowhere")) as process:
        assert process.finish() == 1
    path = tmp_path / "nowhere"
    assert process.log == [f"error: --model-repository: {path}: no such model repository\n"]

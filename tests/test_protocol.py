"""Triton's extensions of V2 over a real server: streams, configuration, statistics, timing, and
what a request may ask for beside its inputs."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import PATIENCE, Digits, Running, publish_slow, slow_request, until

from serving.pb import inference_pb2 as pb
from serving.servicer import SERVICE
from serving.streaming import STREAM_WINDOW
from serving.transport import one_after_the_other

Serve = Callable[..., AbstractContextManager[Running]]
CODE = grpc.StatusCode


def images_request(images: Any, model: str = "classifier", name: str = "") -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(id=name, model_name=model, raw_input_contents=[images.tobytes()])
    request.inputs.add(name="images", datatype="UINT8", shape=images.shape)
    return request


def labels(response: pb.ModelInferResponse) -> list[int]:
    position = [output.name for output in response.outputs].index("labels")
    return [int(label) for label in np.frombuffer(response.raw_output_contents[position], "<i8")]


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory, serve: Serve) -> Iterator[Running]:
    """A server of one slow model that takes a row at a time and lets two requests wait."""
    path = tmp_path_factory.mktemp("slow")
    publish_slow(path)
    with serve(path, max_batch_size=1, max_queue_size=2, max_in_flight=100) as running:
        yield running


def test_every_method_of_the_service_is_answered(running: Running) -> None:
    """None is unknown to the server, which gRPC would tell by 'Method not found!'."""
    for method in SERVICE.methods:
        path = f"/{SERVICE.full_name}/{method.name}"
        call = running.channel.stream_stream(path, bytes, bytes)(iter([b""]), timeout=PATIENCE)
        with contextlib.suppress(grpc.RpcError):  # an empty request may be refused
            list(call)
        assert "Method not found" not in str(call.details())


def test_metadata_names_the_extensions_and_every_served_version(running: Running) -> None:
    server = running.stub.ServerMetadata(pb.ServerMetadataRequest())
    assert {"model_repository", "statistics", "classification"} <= set(server.extensions)
    model = running.stub.ModelMetadata(pb.ModelMetadataRequest(name="classifier"))
    assert list(model.versions) == ["1"]


def test_the_config_of_a_batched_model_leaves_out_the_batch_dimension(running: Running) -> None:
    config = running.stub.ModelConfig(pb.ModelConfigRequest(name="classifier")).config
    assert (config.name, config.platform, config.max_batch_size) == (
        "classifier",
        "onnx_onnxv1",
        64,
    )
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [
        ("images", pb.TYPE_UINT8, [28, 28])
    ]
    assert [(t.name, t.data_type, list(t.dims)) for t in config.output] == [
        ("probabilities", pb.TYPE_FP32, [2]),
        ("labels", pb.TYPE_INT64, []),
    ]
    assert config.dynamic_batching.priority_levels == 2
    assert config.instance_group[0].kind == pb.ModelInstanceGroup.KIND_CPU
    assert config.parameters["precision"].string_value == "fp32"


def test_the_config_of_a_model_of_fixed_shape_has_no_batching(running: Running) -> None:
    config = running.stub.ModelConfig(pb.ModelConfigRequest(name="echo_fixed")).config
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [2, 3]


def test_statistics_count_requests_rows_and_batches_and_grow_together(
    serve: Serve, repository: Path, digits: Digits
) -> None:
    with serve(repository) as own:
        for rows in (3, 2, 3):
            own.stub.ModelInfer(images_request(digits.images[:rows]))
        with pytest.raises(grpc.RpcError):
            own.stub.ModelInfer(images_request(digits.images[:65]))
        request = pb.ModelStatisticsRequest(name="classifier")
        (found,) = own.stub.ModelStatistics(request).model_stats
        everything = own.stub.ModelStatistics(pb.ModelStatisticsRequest()).model_stats
    stats = found.inference_stats
    assert (found.name, int(found.version)) == ("classifier", 1)
    assert (found.inference_count, found.execution_count) == (8, 3)
    counts = [stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output]
    assert [each.count for each in counts] == [3, 3, 3, 3]
    assert (stats.success.count, stats.fail.count) == (3, 1)
    assert stats.success.ns >= stats.compute_infer.ns > 0
    assert [(each.batch_size, each.compute_infer.count) for each in found.batch_stats] == [
        (2, 1),
        (3, 2),
    ]
    assert [each.name for each in everything] == ["classifier", "echo", "echo_fixed"]


def test_the_repository_index_tells_state_and_can_be_asked_for_what_is_ready(
    running: Running,
) -> None:
    index = running.stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models
    assert [(each.name, each.version, each.state) for each in index] == [
        ("classifier", "1", "READY"),
        ("echo", "1", "READY"),
        ("echo_fixed", "1", "READY"),
    ]


def test_an_answer_tells_in_its_trailers_what_it_cost(running: Running, digits: Digits) -> None:
    _, call = running.stub.ModelInfer.with_call(images_request(digits.images[:3]))
    trailers = dict(call.trailing_metadata())
    assert (trailers["batch-size"], trailers["model-version"]) == ("3", "1")
    stages = dict(item.split(";dur=") for item in str(trailers["server-timing"]).split(", "))
    assert list(stages) == ["queue", "batch", "compute", "split"]
    assert 0 < float(stages["compute"]) < 1000


def test_classes_come_as_value_index_label(running: Running, digits: Digits) -> None:
    request = images_request(digits.images[:2])
    request.outputs.add(name="probabilities").parameters["classification"].int64_param = 1
    request.outputs.add(name="labels")
    response = running.stub.ModelInfer(request)
    assert [(o.name, o.datatype, list(o.shape)) for o in response.outputs] == [
        ("probabilities", "BYTES", [2, 1]),
        ("labels", "INT64", [2]),
    ]
    raw = response.raw_output_contents[0]
    texts = []
    while raw:
        size = int.from_bytes(raw[:4], "little")
        texts.append(raw[4 : 4 + size].decode())
        raw = raw[4 + size :]
    indices = labels(response)
    assert [text.split(":")[1:] for text in texts] == [
        [str(index), ("3", "7")[index]] for index in indices
    ]
    assert all(0.5 <= float(text.split(":")[0]) <= 1 for text in texts)


def test_a_stream_answers_every_request_by_id_and_errors_one_by_one(
    running: Running, digits: Digits
) -> None:
    requests = [images_request(digits.images[i : i + 1], name=str(i)) for i in range(60)]
    requests[7].model_name = "nosuch"
    requests[9].raw_input_contents[0] = b"short"
    answers = {
        answer.infer_response.id: answer
        for answer in running.stub.ModelStreamInfer(iter(requests), timeout=PATIENCE)
    }
    assert set(answers) == {str(i) for i in range(60)}
    failed = {name: a.error_message for name, a in answers.items() if a.error_message}
    assert failed == {
        "7": "model 'nosuch' is unknown",
        "9": "input 'images': UINT8 [1, 28, 28] takes 784 bytes, got 5",
    }
    alone = running.stub.ModelInfer(images_request(digits.images[:60]))
    assert [
        labels(answers[str(i)].infer_response)[0] for i in range(60) if str(i) not in failed
    ] == [label for i, label in enumerate(labels(alone)) if str(i) not in failed]


def test_a_stream_answers_while_the_caller_still_sends(running: Running, digits: Digits) -> None:
    answered = threading.Event()

    def requests() -> Iterator[pb.ModelInferRequest]:
        yield images_request(digits.images[:1], name="first")
        assert answered.wait(PATIENCE)
        yield images_request(digits.images[:1], name="second")

    stream: Any = running.stub.ModelStreamInfer(requests(), timeout=PATIENCE)
    assert next(stream).infer_response.id == "first"
    answered.set()
    assert [answer.infer_response.id for answer in stream] == ["second"]


def test_a_stream_of_more_than_its_window_is_answered_whole(
    running: Running, digits: Digits
) -> None:
    count = STREAM_WINDOW + 100
    requests = (images_request(digits.images[:1], name=str(i)) for i in range(count))
    answers = list(running.stub.ModelStreamInfer(requests, timeout=PATIENCE))
    assert {answer.infer_response.id for answer in answers} == {str(i) for i in range(count)}


def test_a_stream_that_is_cancelled_leaves_the_queue(slow: Running) -> None:
    requests = [slow_request(str(i)) for i in range(3)]
    stream: Any = slow.stub.ModelStreamInfer(iter(requests), timeout=PATIENCE)
    next(stream)
    stream.cancel()

    def there_is_room() -> bool:
        """Over the lane, the next request may overtake the cancellation, which is passed on."""
        call = slow.stub.ModelInfer.future(slow_request("next"), timeout=PATIENCE)
        if call.code() is CODE.RESOURCE_EXHAUSTED:
            return False
        assert call.result().id == "next"
        return True

    until(there_is_room)
    assert slow.server.inference.wait_until_idle(PATIENCE)


def test_a_malformed_message_or_parameter_is_an_invalid_argument(
    running: Running, digits: Digits
) -> None:
    send = running.channel.unary_unary(f"/{SERVICE.full_name}/ModelInfer", bytes, bytes)
    with pytest.raises(grpc.RpcError) as caught:
        send(b"\xff\xff", timeout=PATIENCE)
    assert caught.value.code() is CODE.INVALID_ARGUMENT
    request = images_request(digits.images[:1])
    request.parameters["timeout"].string_param = "soon"
    with pytest.raises(grpc.RpcError) as caught:
        running.stub.ModelInfer(request, timeout=PATIENCE)
    assert caught.value.details() == (
        "parameter 'timeout' must be a whole number from 0, got 'soon'"
    )


def test_shared_memory_is_unimplemented_and_says_so(running: Running) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        running.stub.CudaSharedMemoryRegister(pb.CudaSharedMemoryRegisterRequest(name="a"))
    assert (caught.value.code(), caught.value.details()) == (
        CODE.UNIMPLEMENTED,
        "CudaSharedMemoryRegister: this server has no shared memory; send tensors in the request",
    )


def test_administration_is_refused_unless_it_was_allowed(running: Running) -> None:
    calls: list[Callable[[], object]] = [
        lambda: running.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="echo")),
        lambda: running.stub.RepositoryModelUnload(
            pb.RepositoryModelUnloadRequest(model_name="echo")
        ),
        lambda: running.stub.LogSettings(
            pb.LogSettingsRequest(
                settings={"log_info": pb.LogSettingsRequest.SettingValue(bool_param=False)}
            )
        ),
        lambda: running.stub.TraceSetting(
            pb.TraceSettingRequest(
                settings={"trace_level": pb.TraceSettingRequest.SettingValue(value=["TIMESTAMPS"])}
            )
        ),
    ]
    for call in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is CODE.PERMISSION_DENIED
    assert running.stub.LogSettings(pb.LogSettingsRequest()).settings["log_error"].bool_param
    settings = running.stub.TraceSetting(pb.TraceSettingRequest()).settings
    assert list(settings["trace_level"].value) == ["OFF"]


def test_load_and_unload_are_understood_as_kserves_clients_send_them(
    serve: Serve, repository: Path
) -> None:
    """The model's name is in the field where Triton has the repository's; see tests/interop."""
    options = {"allow_admin": True, "model_control_mode": "explicit", "load_model": ("echo",)}
    with serve(repository, **options) as own:
        load = pb.RepositoryModelLoadRequest(repository_name="classifier")
        loaded = own.stub.RepositoryModelLoad(load)
        assert (loaded.model_name, loaded.is_loaded) == ("classifier", True)
        unload = pb.RepositoryModelUnloadRequest(repository_name="classifier")
        unloaded = own.stub.RepositoryModelUnload(unload)
        assert (unloaded.model_name, unloaded.is_unloaded) == ("classifier", True)


def test_a_traced_request_is_a_line_in_the_log(
    serve: Serve, repository: Path, digits: Digits, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    values = pb.TraceSettingRequest.SettingValue
    settings = {"trace_level": values(value=["TIMESTAMPS"]), "trace_rate": values(value=["1"])}
    with serve(repository, allow_admin=True) as own:
        own.stub.TraceSetting(pb.TraceSettingRequest(settings=settings))
        own.stub.ModelInfer(images_request(digits.images[:1], name="traced"))
    lines = [vars(r) for r in caplog.records if r.getMessage() == "trace"]
    assert [line["request_id"] for line in lines] == ["traced"]


def test_the_public_way_to_answer_sends_the_message_then_the_status() -> None:
    """It is taken where grpcio has no other any more."""
    sent: list[bytes | None] = []
    one_after_the_other(None, b"answer", sent.append)
    assert sent == [b"answer", None]

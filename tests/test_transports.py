"""No client can tell the native lane from grpcio: the same calls to both, compared byte by byte.

Beside this, the whole suite runs over either: DIGITS_TRANSPORT says which.
"""

from __future__ import annotations

import itertools
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import ECHO_TYPES, PATIENCE, Digits, Running, publish_classifier, publish_echo
from prometheus_client.parser import text_string_to_metric_families

from serving.pb import digits_pb2, digits_pb2_grpc
from serving.pb import inference_pb2 as pb

pytestmark = pytest.mark.lane

Serve = Callable[..., AbstractContextManager[Running]]
Case = Callable[[Digits], pb.ModelInferRequest]
INFER = "/inference.GRPCInferenceService/ModelInfer"
NUMBERS = {name: kind for name, kind in ECHO_TYPES.items() if name != "BYTES"}
# Of an answer; the values differ, as time does.
TIMES = ("server-timing",)


@dataclass(frozen=True)
class Heard:
    """All that a client hears of one call, without what the clock and chance decide."""

    code: grpc.StatusCode
    details: str
    initial: list[tuple[str, str]]
    trailing: list[tuple[str, str]]
    response: pb.ModelInferResponse | None
    ids: int  # rows with a prediction id


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory, serve: Serve, digits: Digits
) -> Iterator[tuple[Running, Running]]:
    """The same models behind grpcio alone, and behind the lane."""
    path = tmp_path_factory.mktemp("models")
    publish(path, digits)
    with serve_both(path, serve) as running:
        yield running


def publish(path: Path, digits: Digits) -> None:
    publish_classifier(path, digits)
    publish_echo(path, "numbers", (-1, 3), NUMBERS)
    publish_echo(path, "matrix", (-1, -1, 2), {"FP32": ECHO_TYPES["FP32"]})
    publish_echo(path, "texts", (-1, 3))
    publish_echo(path, "fixed", (2, 3))


@contextmanager
def serve_both(path: Path, serve: Serve, **more: Any) -> Iterator[tuple[Running, Running]]:
    options: dict[str, Any] = {"max_batch_size": 8, "max_message_bytes": 100_000, **more}
    with (
        serve(path, transport="grpcio", **options) as plain,
        serve(path, transport="native", **options) as native,
    ):
        yield plain, native


def heard(running: Running, message: bytes, **options: Any) -> Heard:
    call = running.channel.unary_unary(INFER, None, None).future(
        message, timeout=PATIENCE, **options
    )
    code = call.code()
    response = (
        pb.ModelInferResponse.FromString(call.result()) if code is grpc.StatusCode.OK else None
    )
    ids = 0
    if response and "prediction_ids" in response.parameters:
        ids = len(response.parameters.pop("prediction_ids").string_param.split(","))
    initial = [(k, str(v)) for k, v in call.initial_metadata()]
    trailing = [(k, "" if k in TIMES else str(v)) for k, v in call.trailing_metadata()]
    return Heard(code, call.details() or "", initial, sorted(trailing), response, ids)


def images(count: int, **changes: Any) -> Case:
    def request(digits: Digits) -> pb.ModelInferRequest:
        array = digits.images[:count]
        made = pb.ModelInferRequest(
            model_name="classifier", id="mine", raw_input_contents=[array.tobytes()]
        )
        made.inputs.add(name="images", datatype="UINT8", shape=array.shape)
        for name, value in changes.items():
            setattr(made, name, value)
        return made

    return request


def changed(change: Callable[[pb.ModelInferRequest], object]) -> Case:
    def request(digits: Digits) -> pb.ModelInferRequest:
        made = images(2)(digits)
        change(made)
        return made

    return request


def tensor(request: pb.ModelInferRequest, **values: Any) -> None:
    """Change its only input."""
    for name, value in values.items():
        if name == "shape":
            del request.inputs[0].shape[:]
            request.inputs[0].shape.extend(value)
        else:
            setattr(request.inputs[0], name, value)


def numbers(rows: int) -> Case:
    def request(digits: Digits) -> pb.ModelInferRequest:
        made = pb.ModelInferRequest(model_name="numbers")
        for name in reversed(NUMBERS):
            kind = {"BOOL": "?", "FP16": "f2", "FP32": "f4", "FP64": "f8"}.get(name)
            dtype = np.dtype(kind or name.lower())
            made.inputs.add(name=f"in_{name}", datatype=name, shape=[rows, 3])
            made.raw_input_contents.append(np.arange(3 * rows).astype(dtype).tobytes())
        return made

    return request


def matrix(*shape: int) -> Case:
    def request(digits: Digits) -> pb.ModelInferRequest:
        array = np.arange(np.prod(shape), dtype=np.float32)
        made = pb.ModelInferRequest(model_name="matrix", raw_input_contents=[array.tobytes()])
        made.inputs.add(name="in_FP32", datatype="FP32", shape=shape)
        return made

    return request


def typed(digits: Digits) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name="classifier", id="typed")
    tensor = made.inputs.add(name="images", datatype="UINT8", shape=[1, 28, 28])
    tensor.contents.uint_contents.extend(digits.images[0].flatten().tolist())
    return made


def texts(digits: Digits) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name="texts")
    for name in ECHO_TYPES:
        given = made.inputs.add(name=f"in_{name}", datatype=name, shape=[1, 3])
        field = {"BYTES": "bytes_contents", "BOOL": "bool_contents", "FP32": "fp32_contents"}
        if name in field:
            values: list[Any] = [b"drei", b"", b"7"] if name == "BYTES" else [1, 0, 1]
            getattr(given.contents, field[name]).extend(values)
    return made


def classification(count: Any) -> Case:
    def change(request: pb.ModelInferRequest) -> None:
        output = request.outputs.add(name="probabilities")
        output.parameters["classification"].int64_param = count

    return changed(change)


def parameter(name: str, **value: Any) -> Case:
    def change(request: pb.ModelInferRequest) -> None:
        for kind, chosen in value.items():
            setattr(request.parameters[name], kind, chosen)

    return changed(change)


CASES: dict[str, Case] = {
    "one image": images(1),
    "as many as a batch may have": images(8),
    "more than a batch may have": images(9),
    "no id": images(1, id=""),
    "an id beyond ASCII": images(1, id="drei ③"),
    "the version by its number": images(1, model_version="1"),
    "a version that is not there": images(1, model_version="7"),
    "a version that is none": images(1, model_version="x" * 5000),
    "a model that is not there": images(1, model_name="nobody"),
    "a model with quotes in its name": images(1, model_name='it\'s "ours"\n'),
    "no model": images(1, model_name=""),
    "another datatype": changed(lambda r: tensor(r, datatype="FP32")),
    "a datatype with a quote": changed(lambda r: tensor(r, datatype="FP'32")),
    "no datatype": changed(lambda r: tensor(r, datatype="")),
    "another shape": changed(lambda r: tensor(r, shape=[2, 28, 27])),
    "a shape without rows": changed(lambda r: tensor(r, shape=[0, 28, 28])),
    "a negative shape": changed(lambda r: tensor(r, shape=[-1, 28, 28])),
    "too few dimensions": changed(lambda r: tensor(r, shape=[2, 784])),
    "no shape": changed(lambda r: tensor(r, shape=[])),
    "too few bytes": changed(lambda r: tensor(r, shape=[3, 28, 28])),
    "too many bytes": changed(lambda r: tensor(r, shape=[1, 28, 28])),
    "another input": changed(lambda r: tensor(r, name="image")),
    "an input beyond ASCII": changed(lambda r: tensor(r, name="Bildß")),
    "an input without a name": changed(lambda r: tensor(r, name="")),
    "an input twice": changed(lambda r: r.inputs.append(r.inputs[0])),
    "no inputs": changed(lambda r: r.ClearField("inputs")),
    "no contents": changed(lambda r: r.ClearField("raw_input_contents")),
    "contents for two": changed(lambda r: r.raw_input_contents.append(b"")),
    "both kinds of contents": changed(
        lambda r: r.inputs[0].contents.uint_contents.extend([1] * 784)
    ),
    "one output": changed(lambda r: r.outputs.add(name="labels")),
    "outputs in another order": changed(
        lambda r: (r.outputs.add(name="labels"), r.outputs.add(name="probabilities"))
    ),
    "an output twice": changed(
        lambda r: (r.outputs.add(name="labels"), r.outputs.add(name="labels"))
    ),
    "an unknown output": changed(lambda r: r.outputs.add(name="classes")),
    "the two top classes": classification(2),
    "no top classes": classification(0),
    "typed contents": typed,
    "some typed contents of many": texts,
    "every datatype, last input first": numbers(3),
    "a batch of every datatype": numbers(8),
    "a flexible shape": matrix(2, 5, 2),
    "another flexible shape": matrix(1, 1, 2),
    "nothing of a flexible shape": matrix(1, 0, 2),
    "the first priority": parameter("priority", uint64_param=1),
    "a priority that there is not": parameter("priority", uint64_param=77),
    "a priority as text": parameter("priority", string_param="1"),
    "a negative priority": parameter("priority", int64_param=-1),
    "a priority that is no number": parameter("priority", bool_param=True),
    "a long time-out": parameter("timeout", uint64_param=60_000_000),
    "a time-out that passes at once": parameter("timeout", uint64_param=1),
    "a time-out that is text": parameter("timeout", string_param="soon"),
    "a parameter that is ours to ignore": parameter("sequence_id", uint64_param=9),
    "a parameter of another kind": parameter("mine", double_param=0.5),
    "shared memory": changed(
        lambda r: setattr(r.inputs[0].parameters["shared_memory_region"], "string_param", "here")
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_both_answer_the_same(both: tuple[Running, Running], digits: Digits, name: str) -> None:
    message = CASES[name](digits).SerializeToString()
    plain, native = (heard(running, message) for running in both)
    assert native == plain


@pytest.mark.parametrize(
    "message",
    [b"", b"\x0a", b"\xff\xff", b"\x0a\x03abc", b"\x0b\x0c", b"\x0a\x02\xc3\x28", bytes(64)],
)
def test_both_answer_the_same_to_bytes_that_are_no_request(
    both: tuple[Running, Running], message: bytes
) -> None:
    plain, native = (heard(running, message) for running in both)
    assert native == plain


def test_both_refuse_a_message_that_is_too_large_alike(both: tuple[Running, Running]) -> None:
    plain, native = (heard(running, bytes(100_001)) for running in both)
    assert plain.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert native == plain


def test_both_refuse_an_answer_that_is_too_large_alike(
    both: tuple[Running, Running], digits: Digits
) -> None:
    """A request of the limit, of which the echo is a little larger."""
    request = pb.ModelInferRequest.FromString(matrix(1, 12_000, 2)(digits).SerializeToString())
    request.id = "i" * (100_000 - request.ByteSize() - 3)  # its tag, and its size
    message = request.SerializeToString()
    assert len(message) == 100_000
    plain, native = (heard(running, message) for running in both)
    assert plain.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert native == plain


@pytest.mark.parametrize("kind", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_both_take_compressed_messages(
    both: tuple[Running, Running], digits: Digits, kind: grpc.Compression
) -> None:
    message = images(4)(digits).SerializeToString()
    plain, native = (heard(running, message, compression=kind) for running in both)
    assert (native, native.code) == (plain, grpc.StatusCode.OK)


@pytest.mark.parametrize("method", ["/inference.GRPCInferenceService/Nothing", "/x/y", "/"])
def test_both_know_no_other_methods(both: tuple[Running, Running], method: str) -> None:
    told = []
    for running in both:
        call = running.channel.unary_unary(method, None, None).future(b"", timeout=PATIENCE)
        told.append((call.code(), call.details()))
    assert told[0] == told[1]
    assert told[0][0] is grpc.StatusCode.UNIMPLEMENTED


# What is counted, and what feedback makes of the answers

# The rest is of the process, or of when something was.
COUNTS = (
    "inference_requests_total",
    "inference_rejected_total",
    "inference_inferences_total",
    "inference_executions_total",
    "inference_request_bytes_total",
    "inference_response_bytes_total",
    "inference_request_rows",
    "inference_batch_rows",
    "inference_predictions_total",
    "inference_confidence",
    "inference_ink",
    "inference_in_flight",
    "inference_pending",
    "inference_instances",
    "inference_queue_limit",
    "inference_model_info",
    "inference_model_ready",
    "inference_feedback",
)
TIMED = ("request", "queue", "compute_input", "compute_infer", "compute_output")


def counted(running: Running) -> dict[tuple[str, frozenset[tuple[str, str]]], object]:
    """All that is a number of something, and of durations how many there were."""
    assert running.server.inference.wait_until_idle(PATIENCE)
    text = urllib.request.urlopen(running.metrics_url, timeout=PATIENCE).read().decode()
    samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
    durations = tuple(f"inference_{name}_seconds_count" for name in TIMED)
    return {
        # Sums of confidences and ink are rounded by the order of answers.
        (s.name, frozenset(s.labels.items())): pytest.approx(s.value)
        for s in samples
        if (s.name.startswith(COUNTS) and not s.name.endswith("_created")) or s.name in durations
    }


def test_both_count_the_same(serve: Serve, tmp_path: Path, digits: Digits) -> None:
    publish(tmp_path, digits)
    with serve_both(tmp_path, serve) as both:
        messages = [case(digits).SerializeToString() for case in CASES.values()]
        told = [heard(*each) for each in itertools.product(both, messages)]
        plain, native = (counted(running) for running in both)
        plain_statistics, native_statistics = (statistics(running) for running in both)
    assert native == plain
    assert native_statistics == plain_statistics
    models = [each.response.model_name for each in told if each.response]
    labels = frozenset({"model": "classifier", "version": "1"}.items())
    assert plain["inference_batch_rows_count", labels] == models.count("classifier") / 2 > 10


def statistics(running: Running) -> list[tuple[object, ...]]:
    """Of each model: requests, rows and batches, by what ModelStatistics says."""
    models = running.stub.ModelStatistics(pb.ModelStatisticsRequest()).model_stats
    return [
        (
            each.name,
            each.inference_count,
            each.execution_count,
            each.inference_stats.success.count,
            each.inference_stats.fail.count,
            [(batch.batch_size, batch.compute_infer.count) for batch in each.batch_stats],
        )
        for each in models
    ]


def test_each_takes_labels_for_what_the_other_predicted(
    serve: Serve, tmp_path: Path, digits: Digits
) -> None:
    publish_classifier(tmp_path / "models", digits)
    keys = tmp_path / "keys"
    keys.write_text("a secret of this test")
    outcomes = digits_pb2.FeedbackResult
    with serve_both(tmp_path / "models", serve, feedback_key_file=keys) as both:
        for asked, told in (both, both[::-1]):
            answer = asked.stub.ModelInfer(images(8)(digits))
            ids = answer.parameters["prediction_ids"].string_param.split(",")
            stub = digits_pb2_grpc.DigitsStub(told.channel)
            feedback = [digits_pb2.Feedback(prediction_id=each, label="3") for each in ids]
            for expected in (outcomes.COUNTED, outcomes.REPEATED):
                request = digits_pb2.SendFeedbackRequest(feedback=feedback)
                assert [r.outcome for r in stub.SendFeedback(request).results] == [expected] * 8
        quality = [
            digits_pb2_grpc.DigitsStub(each.channel).GetQuality(digits_pb2.GetQualityRequest())
            for each in both
        ]
    confusion = [
        [(c.truth, c.predicted, c.count) for c in each.models[0].confusion] for each in quality
    ]
    assert confusion[0] == confusion[1]
    assert sum(count for _, _, count in confusion[0]) == 8

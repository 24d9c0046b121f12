"""No client can tell the native lane from grpcio: the same calls to both, compared byte by byte.

Beside this, the whole suite runs over either: DIGITS_TRANSPORT says which.
"""

from __future__ import annotations

import itertools
import re
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    publish_echo,
    publish_slow,
    slow_request,
    until,
)
from hypothesis import event, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from test_errors import subclasses
from test_load_metrics import lookup, publish_lookup

from serving.errors import (
    BatcherClosed,
    DeadlineExceeded,
    Draining,
    InvalidInput,
    LoadFailed,
    ModelFailed,
    ModelNotFound,
    ModelNotReady,
    NoRoom,
    NotAllowed,
    NotSupported,
    Overloaded,
    QueueFull,
    RateLimited,
    RequestCancelled,
    ServingError,
    Unauthenticated,
)
from serving.pb import digits_pb2, digits_pb2_grpc
from serving.pb import inference_pb2 as pb

pytestmark = pytest.mark.lane

Serve = Callable[..., AbstractContextManager[Running]]
Case = Callable[[Digits], pb.ModelInferRequest]
INFER = "/inference.GRPCInferenceService/ModelInfer"
NUMBERS = {name: kind for name, kind in ECHO_TYPES.items() if name != "BYTES"}
# Of an answer; the values differ, as time does.
TIMES = ("server-timing",)
# What a request that failed is called in the log, where its caller has given it no id: a UUID.
MADE_UP = re.compile(r"\(request [0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}\)")


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
def models(tmp_path_factory: pytest.TempPathFactory, digits: Digits) -> Path:
    path = tmp_path_factory.mktemp("models")
    publish(path, digits)
    return path


@pytest.fixture(scope="module")
def both(models: Path, serve: Serve) -> Iterator[tuple[Running, Running]]:
    """The same models behind grpcio alone, and behind the lane."""
    with serve_both(models, serve) as running:
        yield running


def publish(path: Path, digits: Digits) -> None:
    publish_classifier(path, digits)
    publish_echo(path, "numbers", (-1, 3), NUMBERS)
    publish_echo(path, "matrix", (-1, -1, 2), {"FP32": ECHO_TYPES["FP32"]})
    publish_echo(path, "texts", (-1, 3))
    publish_echo(path, "fixed", (2, 3))
    publish_lookup(path)


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
    details = MADE_UP.sub("(request made up)", call.details() or "")
    return Heard(code, details, initial, sorted(trailing), response, ids)


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


def looked_up(place: int, name: str = "") -> Case:
    def request(digits: Digits) -> pb.ModelInferRequest:
        made = lookup(place)
        made.id = name
        return made

    return request


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
    "a long name of a model beyond ASCII": images(1, model_name="③" * 1100),
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
    "more outputs than there are twice": changed(
        lambda r: [r.outputs.add(name="labels") for _ in range(5)]
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
    "a number that the table has": looked_up(3),
    "a failing model": looked_up(9),
    "a failing model and an id": looked_up(9, "mine"),
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


# Every error that a request can meet


@dataclass(frozen=True)
class Met:
    """How a call comes to be refused, by a server with these options; and what it hears."""

    refused: Callable[[Running, Digits], Any]
    status: str
    text: str
    options: dict[str, Any] = field(default_factory=dict)


def send(running: Running, request: pb.ModelInferRequest) -> Any:
    return running.stub.ModelInfer.future(request, timeout=LIFETIME)


def gauge(running: Running, name: str) -> float:
    text = urllib.request.urlopen(running.metrics_url, timeout=PATIENCE).read().decode()
    samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
    return sum(s.value for s in samples if s.name == f"inference_{name}")


def at_once(case: Case) -> Callable[[Running, Digits], Any]:
    return lambda running, digits: send(running, case(digits))


def one_more_than(count: int) -> Callable[[Running, Digits], Any]:
    """So many wait for company, which comes to none of them."""

    def refused(running: Running, digits: Digits) -> Any:
        calls = [send(running, images(1)(digits)) for _ in range(count)]
        until(lambda: gauge(running, "pending_requests") == count)
        calls.append(send(running, images(1)(digits)))
        calls[-1].code()  # the others are cancelled with the last mention of them
        return calls[-1]

    return refused


def after_its_model(running: Running, digits: Digits) -> Any:
    running.server.inference.admin.unload("classifier")
    return send(running, images(1)(digits))


def with_its_model(running: Running, digits: Digits) -> Any:
    """The last of those that wait, while another runs for longer than the server has patience."""
    calls = [send(running, slow_request()) for _ in range(8)]
    until(lambda: 4 <= gauge(running, "pending_requests") < gauge(running, "in_flight_requests"))
    running.server.inference.admin.unload("slow")
    return next(call for call in calls if call.code() is not grpc.StatusCode.OK)


WAITING: dict[str, Any] = {"max_queue_delay": LIFETIME, "drain_timeout": 0.1}
EXPLICIT: dict[str, Any] = {"model_control_mode": "explicit", "drain_timeout": 0.01}
MET: dict[type[ServingError], Met] = {
    ModelNotFound: Met(
        at_once(images(1, model_name="nobody")), "NOT_FOUND", "model 'nobody' is unknown"
    ),
    ModelNotReady: Met(
        after_its_model,
        "UNAVAILABLE",
        "model 'classifier' version 1 is not served: was unloaded",
        {**EXPLICIT, "load_model": ("classifier",)},
    ),
    BatcherClosed: Met(
        with_its_model,
        "UNAVAILABLE",
        "the version was unloaded before the request could run",
        {**EXPLICIT, "load_model": ("slow",), "max_batch_size": 1},
    ),
    InvalidInput: Met(
        at_once(images(9)),
        "INVALID_ARGUMENT",
        "the request has 9 rows, at most 8 are allowed",
    ),
    QueueFull: Met(
        one_more_than(4),
        "RESOURCE_EXHAUSTED",
        "4 requests are already waiting",
        {**WAITING, "max_queue_size": 4},
    ),
    Overloaded: Met(
        one_more_than(3),
        "RESOURCE_EXHAUSTED",
        "the server is overloaded",
        {**WAITING, "max_in_flight": 3},
    ),
    DeadlineExceeded: Met(
        at_once(parameter("timeout", uint64_param=1)),
        "DEADLINE_EXCEEDED",
        "the deadline passed before the request could run",
    ),
    ModelFailed: Met(
        at_once(looked_up(9, "mine")), "INTERNAL", "the model failed; the server's log says why"
    ),
}
NEVER_HEARD: dict[type[ServingError], str] = {
    NoRoom: "its subclasses are what is raised",
    Draining: "of streams that go on: a client calls nobody who says that he ends",
    RequestCancelled: "who has gone away hears nothing",
    Unauthenticated: "of tokens: test_tokens has both",
    RateLimited: "likewise",
    NotAllowed: "of administration",
    LoadFailed: "of administration",
    NotSupported: "of the methods for shared memory",
}


def test_every_serving_error_is_one_that_a_call_meets_or_never_hears() -> None:
    assert sorted([*MET, *NEVER_HEARD], key=str) == sorted(subclasses(ServingError), key=str)


@pytest.mark.parametrize("kind", MET, ids=lambda kind: kind.__name__)
def test_both_tell_the_same_error_by_the_same_words(
    kind: type[ServingError],
    models: Path,
    tmp_path: Path,
    serve: Serve,
    both: tuple[Running, Running],
    digits: Digits,
) -> None:
    met = MET[kind]
    if met.refused is with_its_model:  # one that the others need not wait for
        publish_slow(tmp_path)
        models = tmp_path
    with serve_both(models, serve, **met.options) if met.options else nullcontext(both) as servers:
        for running in servers:
            call = met.refused(running, digits)
            assert (call.code().name, call.details()) == (met.status, met.text)


def test_who_gave_no_id_is_told_what_to_look_for_in_the_log(
    both: tuple[Running, Running],
) -> None:
    for running in both:
        details = heard(running, lookup(9).SerializeToString()).details
        assert details == f"{MET[ModelFailed].text} (request made up)"


# Whatever is asked


def set_field(request: pb.ModelInferRequest, name: str, value: str) -> None:
    setattr(request, name, value)


def set_input(request: pb.ModelInferRequest, place: int, name: str, value: str) -> None:
    if request.inputs:
        setattr(request.inputs[place % len(request.inputs)], name, value)


def set_shape(request: pb.ModelInferRequest, place: int, shape: list[int]) -> None:
    if request.inputs:
        sizes = request.inputs[place % len(request.inputs)].shape
        del sizes[:]
        sizes.extend(shape)


def set_size(request: pb.ModelInferRequest, place: int, axis: int, size: int) -> None:
    if request.inputs and (shape := request.inputs[place % len(request.inputs)].shape):
        shape[axis % len(shape)] = size


def add_bytes(request: pb.ModelInferRequest, place: int, count: int) -> None:
    """Or take some away."""
    contents = request.raw_input_contents
    if contents:
        raw = contents[place % len(contents)]
        contents[place % len(contents)] = raw[:count] if count < 0 else raw + bytes(count)


def add_input(request: pb.ModelInferRequest, place: int, raw: bool) -> None:
    if request.inputs:
        request.inputs.append(request.inputs[place % len(request.inputs)])
    if raw:
        request.raw_input_contents.append(b"more")


def drop_input(request: pb.ModelInferRequest, place: int, raw: bool) -> None:
    if request.inputs:
        del request.inputs[place % len(request.inputs)]
    if raw and request.raw_input_contents:
        del request.raw_input_contents[place % len(request.raw_input_contents)]


def add_output(request: pb.ModelInferRequest, name: str, classes: int) -> None:
    output = request.outputs.add(name=name)
    if classes:
        output.parameters["classification"].int64_param = classes


def add_parameter(request: pb.ModelInferRequest, name: str, kind: str, value: Any) -> None:
    setattr(request.parameters[name], kind, value)


# Those that are answered; what is asked is one of them, changed.
RIGHT = (
    "one image",
    "as many as a batch may have",
    "the two top classes",
    "outputs in another order",
    "typed contents",
    "every datatype, last input first",
    "a flexible shape",
    "nothing of a flexible shape",
    "a number that the table has",
)
KNOWN = ("", "1", "images", "in_FP32", "in_INT8", "classifier", "matrix", "FP32", "UINT8", "BYTES")
TEXTS = st.sampled_from(KNOWN) | st.text(max_size=6)
PLACES = st.integers(0, 11)
SIZES = st.sampled_from([-1, 0, 1, 2, 3, 8, 9, 28, 784, 2**31, 2**61, 2**62, 2**63 - 1])
OUTPUTS = st.sampled_from(["probabilities", "labels", "out_FP32", "number"]) | TEXTS
# Of time-outs, only those that have passed by now, and those that never will.
TIMEOUTS = st.sampled_from(
    [
        ("int64_param", 0),
        ("int64_param", 1),
        ("int64_param", -1),
        ("int64_param", 2**63 - 1),
        ("uint64_param", 2**64 - 1),
        ("string_param", "60000000"),
        ("string_param", "soon"),
        ("double_param", 1.5),
    ]
)
VALUES = st.one_of(
    st.tuples(st.just("int64_param"), st.sampled_from([-(2**63), -1, 0, 1, 77, 2**63 - 1])),
    st.tuples(st.just("uint64_param"), st.sampled_from([0, 1, 77, 2**64 - 1])),
    st.tuples(st.just("string_param"), TEXTS),
    st.tuples(st.just("bool_param"), st.booleans()),
    st.tuples(st.just("double_param"), st.floats()),
)
NAMES = st.sampled_from(["priority", "sequence_id"]) | TEXTS
CHANGES: st.SearchStrategy[tuple[Any, ...]] = st.one_of(
    st.tuples(st.just(set_field), st.sampled_from(["model_name", "model_version", "id"]), TEXTS),
    st.tuples(st.just(set_input), PLACES, st.sampled_from(["name", "datatype"]), TEXTS),
    st.tuples(st.just(set_shape), PLACES, st.lists(SIZES, max_size=4)),
    st.tuples(st.just(set_size), PLACES, PLACES, SIZES),
    st.tuples(st.just(add_bytes), PLACES, st.integers(-9, 9)),
    st.tuples(st.just(add_input), PLACES, st.booleans()),
    st.tuples(st.just(drop_input), PLACES, st.booleans()),
    st.tuples(st.just(add_output), OUTPUTS, st.integers(-1, 3)),
    st.builds(lambda name, value: (add_parameter, name, *value), NAMES, VALUES),
    st.builds(lambda value: (add_parameter, "timeout", *value), TIMEOUTS),
)
DAMAGE = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 255)), max_size=3)


def damaged(message: bytes, flips: list[tuple[int, int]], end: int | None) -> bytes:
    """Bits of some bytes flipped, all beyond `end` cut off."""
    changed = bytearray(message)
    for place, bits in flips:
        if changed:
            changed[place % len(changed)] ^= bits
    return bytes(changed[:end])


@settings(max_examples=200)
@given(
    name=st.sampled_from(RIGHT),
    changes=st.lists(CHANGES, max_size=3),
    flips=st.just([]) | DAMAGE,
    end=st.none() | st.none() | st.integers(0, 900),
)
def test_both_answer_the_same_whatever_is_asked(
    both: tuple[Running, Running],
    digits: Digits,
    name: str,
    changes: list[tuple[Any, ...]],
    flips: list[tuple[int, int]],
    end: int | None,
) -> None:
    request = CASES[name](digits)
    for change, *arguments in changes:
        change(request, *arguments)
    message = request.SerializeToString()
    if "timeout" not in request.parameters:  # or it might be one that passes now and then
        message = damaged(message, flips, end)
    plain, native = (heard(running, message) for running in both)
    event(plain.code.name)
    assert native == plain


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

"""Classify and StreamClassify of digits.v1, over either transport: images of every kind in, labels
that SendFeedback takes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import grpc
import numpy as np
import pytest
from conftest import (
    LIFETIME,
    PATIENCE,
    THREES_AND_SEVENS,
    TRANSPORTS,
    Digits,
    Running,
    publish_classifier,
    publish_echo,
    until,
)
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from numpy.typing import NDArray
from test_classify import BAD_FILES, BAD_PIXELS, encoded, on_paper
from test_digits_service import images_request
from test_overload import count

from digit_image import normalise
from serving.pb import digits_pb2 as pb
from serving.pb import digits_pb2_grpc as pb_grpc
from serving.pb import inference_pb2

Serve = Callable[..., AbstractContextManager[Running]]
CODE = grpc.StatusCode
MOST_ROWS = 8


@pytest.fixture(scope="module", params=TRANSPORTS)
def asked(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    serve: Serve,
    digits: Digits,
) -> Iterator[Running]:
    """A server of the classifier and of an echo."""
    path = tmp_path_factory.mktemp("asked")
    publish_classifier(path, digits)
    publish_echo(path, "echo", (-1, 3))
    with serve(path, transport=request.param, max_batch_size=MOST_ROWS) as running:
        yield running


@pytest.fixture
def stub(asked: Running) -> pb_grpc.DigitsStub:
    return pb_grpc.DigitsStub(asked.channel)


def classify_request(*files: bytes, **values: Any) -> pb.ClassifyRequest:
    images = [pb.Image(encoded=file) for file in files]
    return pb.ClassifyRequest(**{"model_name": "classifier", "images": images, **values})


def told(asked: Running, images: NDArray[np.uint8]) -> list[list[float]]:
    """What ModelInfer says of them."""
    answer = asked.stub.ModelInfer(images_request(images), timeout=PATIENCE)
    return np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(-1, 2).tolist()


def refusal(stub: pb_grpc.DigitsStub, request: pb.ClassifyRequest) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Classify(request, timeout=PATIENCE)
    call = cast(grpc.Call, caught.value)
    return call.code(), call.details() or ""


def test_an_image_gets_the_answer_that_its_digit_gets_from_modelinfer(
    asked: Running, stub: pb_grpc.DigitsStub, digits: Digits
) -> None:
    files = [encoded(on_paper(image)) for image in digits.images[:3]]
    expected = np.stack([normalise(on_paper(image)) for image in digits.images[:3]])
    request = classify_request(*files, id="mine", return_normalised=True)
    answer = stub.Classify(request, timeout=PATIENCE)
    assert (answer.model_name, answer.model_version, answer.id) == ("classifier", "1", "mine")
    assert list(answer.classes) == ["3", "7"]
    assert [each.normalised for each in answer.classifications] == [e.tobytes() for e in expected]
    shares = [list(each.probabilities) for each in answer.classifications]
    assert shares == told(asked, expected)
    assert [each.label for each in answer.classifications] == [
        "37"[int(np.argmax(each))] for each in shares
    ]


def test_files_and_pixels_of_every_kind_get_the_same_answer(
    stub: pb_grpc.DigitsStub, digits: Digits
) -> None:
    pages = [on_paper(image) for image in digits.images[:MOST_ROWS]]
    colour = [np.stack([page, page, page], axis=2) for page in pages]
    forms = [
        [pb.Image(encoded=encoded(page)) for page in pages],
        [pb.Image(encoded=encoded(page, "JPEG", quality=90)) for page in pages],
        [pb.Image(pixels=pixels(page)) for page in pages],
        [pb.Image(pixels=pixels(page)) for page in colour],
    ]
    shares = []
    for images in forms:
        request = pb.ClassifyRequest(model_name="classifier", images=images)
        rows = stub.Classify(request, timeout=PATIENCE).classifications
        assert {row.normalised for row in rows} == {b""}
        shares.append([row.probabilities[0] for row in rows])
    assert shares[2] == shares[3] == shares[0]
    assert shares[1] == pytest.approx(shares[0], abs=0.05)


def pixels(page: NDArray[np.uint8]) -> pb.Pixels:
    height, width, *channels = page.shape
    return pb.Pixels(height=height, width=width, channels=sum(channels), data=page.tobytes())


def test_each_image_has_a_prediction_id_that_feedback_is_counted_for(
    stub: pb_grpc.DigitsStub, digits: Digits
) -> None:
    answer = stub.Classify(
        classify_request(*(encoded(on_paper(each)) for each in digits.images[:2])),
        timeout=PATIENCE,
    )
    items = [
        pb.Feedback(prediction_id=each.prediction_id, label=each.label)
        for each in answer.classifications
    ]
    before = stub.GetQuality(pb.GetQualityRequest()).models[0]
    results = stub.SendFeedback(pb.SendFeedbackRequest(feedback=items)).results
    after = stub.GetQuality(pb.GetQualityRequest()).models[0]
    assert [each.outcome for each in results] == [pb.FeedbackResult.COUNTED] * 2
    assert after.correct_count - before.correct_count == 2


def test_the_cost_is_told_in_trailers_and_the_rows_are_counted(
    asked: Running, stub: pb_grpc.DigitsStub, digits: Digits
) -> None:
    def rows() -> int:
        request = inference_pb2.ModelStatisticsRequest(name="classifier")
        return asked.stub.ModelStatistics(request).model_stats[0].inference_count

    before = rows()
    request = classify_request(*[encoded(on_paper(digits.images[0]))] * 3)
    call: Any = stub.Classify.with_call(request, timeout=PATIENCE)[1]
    trailers = dict(call.trailing_metadata())
    assert trailers["server-timing"].startswith("queue;dur=")
    assert (trailers["batch-size"], trailers["model-version"]) == ("3", "1")
    assert rows() == before + 3


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_image_of_a_digit_is_an_invalid_argument(
    name: str, stub: pb_grpc.DigitsStub, digits: Digits
) -> None:
    good = encoded(on_paper(digits.images[0]))
    file, fault = BAD_FILES[name]
    code, details = refusal(stub, classify_request(good, file))
    assert code is CODE.INVALID_ARGUMENT
    assert details.startswith(f"images[1]: {fault}")


@pytest.mark.parametrize("name", BAD_PIXELS)
def test_pixels_that_are_no_image_are_an_invalid_argument(
    name: str, stub: pb_grpc.DigitsStub
) -> None:
    bad, fault = BAD_PIXELS[name]
    images = [pb.Image(pixels=bad)]
    code, details = refusal(stub, pb.ClassifyRequest(model_name="classifier", images=images))
    assert (code, details) == (CODE.INVALID_ARGUMENT, f"images[0]: {fault}")


def test_requests_that_ask_for_what_there_is_not_are_told_so(
    stub: pb_grpc.DigitsStub, digits: Digits
) -> None:
    file = encoded(on_paper(digits.images[0]))
    too_many = [file] * (MOST_ROWS + 1)
    assert refusal(stub, classify_request(*too_many)) == (
        CODE.INVALID_ARGUMENT,
        f"images: 1 to {MOST_ROWS} in one request, got {MOST_ROWS + 1}",
    )
    assert refusal(stub, classify_request())[0] is CODE.INVALID_ARGUMENT
    assert refusal(stub, pb.ClassifyRequest(model_name="classifier", images=[pb.Image()])) == (
        CODE.INVALID_ARGUMENT,
        "images[0]: has neither encoded nor pixels",
    )
    code, details = refusal(stub, classify_request(file, model_name="echo"))
    assert code is CODE.INVALID_ARGUMENT
    assert details.startswith("model 'echo' takes no digits")
    assert refusal(stub, classify_request(file, model_name="nobody"))[0] is CODE.NOT_FOUND
    assert refusal(stub, classify_request(file, model_version="9"))[0] is CODE.NOT_FOUND


def test_bytes_that_are_no_request_are_an_invalid_argument(asked: Running) -> None:
    call: Any = asked.channel.unary_unary("/digits.v1.Digits/Classify", None, None)
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\xff\xff\xff", timeout=PATIENCE)
    assert cast(grpc.Call, caught.value).code() is CODE.INVALID_ARGUMENT
    assert cast(grpc.Call, caught.value).details() == "the message is no ClassifyRequest"


def test_a_deadline_that_is_over_ends_the_call(stub: pb_grpc.DigitsStub, digits: Digits) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Classify(classify_request(encoded(on_paper(digits.images[0]))), timeout=1e-6)
    assert cast(grpc.Call, caught.value).code() is CODE.DEADLINE_EXCEEDED


def test_a_stream_answers_each_by_its_id_and_refuses_one_by_one(
    stub: pb_grpc.DigitsStub, digits: Digits
) -> None:
    good = encoded(on_paper(digits.images[0]))
    requests = [
        classify_request(good, id="a"),
        classify_request(b"no image", id="b"),
        classify_request(good, id="c", model_name="nobody"),
        classify_request(good, good, id="d"),
    ]
    answers = {
        each.response.id: each for each in stub.StreamClassify(iter(requests), timeout=PATIENCE)
    }
    assert {key: each.error_status for key, each in answers.items()} == {
        "a": "",
        "b": "INVALID_ARGUMENT",
        "c": "NOT_FOUND",
        "d": "",
    }
    assert answers["b"].error_message == "images[0]: not a PNG or JPEG image"
    assert len(answers["d"].response.classifications) == 2
    assert answers["a"].response.classifications[0].prediction_id


def test_a_stream_is_answered_while_it_is_open_and_beyond_its_window(
    stub: pb_grpc.DigitsStub, digits: Digits
) -> None:
    good = encoded(on_paper(digits.images[0]))
    sending: SimpleQueue[pb.ClassifyRequest | None] = SimpleQueue()
    requests = cast(Iterator[pb.ClassifyRequest], iter(sending.get, None))
    answers = iter(stub.StreamClassify(requests, timeout=PATIENCE))
    ids = []
    for number in range(200):
        sending.put(classify_request(good, id=str(number)))
        ids.append(next(answers).response.id)
    sending.put(None)
    assert ids == [str(number) for number in range(200)]
    assert list(answers) == []


def test_reflection_describes_both(asked: Running) -> None:
    database = ProtoReflectionDescriptorDatabase(asked.channel)
    assert "digits.v1.Digits" in database.get_services()
    service = DescriptorPool(database).FindServiceByName("digits.v1.Digits")
    described = {
        name: (each.input_type.name, each.output_type.name, each.client_streaming)
        for name, each in service.methods_by_name.items()
        if "Classify" in name
    }
    assert described == {
        "Classify": ("ClassifyRequest", "ClassifyResponse", False),
        "StreamClassify": ("ClassifyRequest", "StreamClassifyResponse", True),
    }
    fields = service.methods_by_name["Classify"].input_type.fields_by_name
    assert list(fields) == ["model_name", "model_version", "id", "images", "return_normalised"]


# Requests that wait, where there is no room, and when the server stops


@contextmanager
def waiting(serve: Serve, path: Path, digits: Digits, transport: str) -> Iterator[Any]:
    """A server with room for three requests, which wait until eight rows are together; how many
    are inside, to be waited for; and a request of so many images."""
    publish_classifier(path, digits)
    options: dict[str, Any] = {"max_queue_delay": LIFETIME, "max_in_flight": 3}
    file = encoded(on_paper(digits.images[0]))

    def inside(number: int) -> None:
        until(lambda: count(own, "in_flight_requests") == number)

    def request(images: int) -> pb.ClassifyRequest:
        return classify_request(*[file] * images, id="mine")

    with serve(path, transport=transport, max_batch_size=MOST_ROWS, **options) as own:
        yield own, pb_grpc.DigitsStub(own.channel), inside, request


def test_calls_share_the_room_wait_for_company_and_can_be_cancelled(
    tmp_path: Path, serve: Serve, digits: Digits, transport: str
) -> None:
    with waiting(serve, tmp_path, digits, transport) as (_, stub, inside, request):
        calls = [stub.Classify.future(request(1), timeout=LIFETIME) for _ in range(3)]
        inside(3)
        refused = stub.Classify.future(request(1), timeout=LIFETIME)
        (streamed,) = stub.StreamClassify(iter([request(1)]), timeout=LIFETIME)
        assert refused.code() is CODE.RESOURCE_EXHAUSTED
        assert "grpc-retry-pushback-ms" in dict(refused.trailing_metadata())
        assert (streamed.response.id, streamed.error_status) == ("mine", "RESOURCE_EXHAUSTED")
        calls[0].cancel()
        inside(2)
        assert len(stub.Classify(request(6), timeout=LIFETIME).classifications) == 6
        assert [call.result().id for call in calls[1:]] == ["mine", "mine"]


def test_a_deadline_reaches_the_queue(
    tmp_path: Path, serve: Serve, digits: Digits, transport: str
) -> None:
    with waiting(serve, tmp_path, digits, transport) as (_, stub, inside, request):
        call = stub.Classify.future(request(1), timeout=0.5)
        assert call.code() is CODE.DEADLINE_EXCEEDED
        inside(0)


def test_a_stream_that_is_cancelled_leaves_the_queue(
    tmp_path: Path, serve: Serve, digits: Digits, transport: str
) -> None:
    with waiting(serve, tmp_path, digits, transport) as (_, stub, inside, request):
        stream = stub.StreamClassify(iter([request(1), request(2)]), timeout=LIFETIME)
        inside(2)
        stream.cancel()
        inside(0)


def test_a_server_that_stops_answers_what_it_was_asked_before(
    tmp_path: Path, serve: Serve, digits: Digits, transport: str
) -> None:
    publish_classifier(tmp_path, digits)
    page = np.kron(on_paper(digits.images[0]), np.ones((10, 10), np.uint8))
    with serve(tmp_path, transport=transport, drain_timeout=LIFETIME) as own:
        stub = pb_grpc.DigitsStub(own.channel)
        call = stub.Classify.future(classify_request(encoded(page)), timeout=LIFETIME)
        until(lambda: own.server.inference.receiving or call.done())
        own.server.stop()
        assert call.result().classifications[0].label in THREES_AND_SEVENS

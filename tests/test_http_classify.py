"""/v1/classify over a real server: files and pixels in, what every model says of them out."""

from __future__ import annotations

import json
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import (
    CLASSIFIER_OUTPUTS,
    IMAGES,
    LIFETIME,
    PATIENCE,
    TRANSPORTS,
    Digits,
    Running,
    publish_classifier,
    publish_echo,
    publish_model,
    save_classifier,
    until,
)
from test_classify import BAD_FILES, encoded, on_paper
from test_digits_service import images_request
from test_overload import count

from digit_image import normalise
from model_repository import TensorSpec
from serving.access import Timing
from serving.batch import Stages
from serving.decoding import DECODING_THREADS, MOST_WAITING, Decoding
from serving.http.classify import MOST_JSON, told
from serving.pb import digits_pb2 as pb
from serving.pb import digits_pb2_grpc as pb_grpc
from serving.pb import inference_pb2 as messages
from serving.replies import Refusal, Reply

Serve = Callable[..., AbstractContextManager[Running]]


def publish_three_classes(repository: Path, digits: Digits) -> None:
    """The classifier, of which nothing is ever the third class."""
    outputs = (TensorSpec("probabilities", "FP32", (-1, 3)), CLASSIFIER_OUTPUTS[1])
    publish_model(
        repository,
        "three",
        lambda path: save_classifier(path, digits, unseen=1),
        (IMAGES,),
        outputs,
        ("3", "7", "none"),
    )


@pytest.fixture(scope="module", params=TRANSPORTS)
def asked(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    serve: Serve,
    digits: Digits,
) -> Iterator[Running]:
    """A server of two classifiers, two versions of one of them, and an echo."""
    path = tmp_path_factory.mktemp("asked")
    publish_classifier(path, digits, "b")
    publish_classifier(path, digits, "b")
    publish_classifier(path, digits, "a")
    publish_three_classes(path, digits)
    publish_echo(path, "echo", (-1, 3))
    options: dict[str, Any] = {"version_policy": "all", "max_message_bytes": 2_000_000}
    with serve(path, transport=request.param, allow_http=True, **options) as running:
        yield running


def post(running: Running, content: bytes, path: str = "", kind: str = "image/png") -> Any:
    url = f"{running.http_url}/v1/classify{path}"
    return httpx.post(url, content=content, headers={"Content-Type": kind}, timeout=PATIENCE)


def post_json(running: Running, given: object) -> Any:
    return post(running, json.dumps(given).encode(), kind="application/json; charset=utf-8")


def refused(answer: Any, status: int) -> str:
    """What is said of it."""
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    return str(answer.json()["error"])


def test_every_model_that_takes_digits_answers_those_of_more_classes_first(
    asked: Running, digits: Digits
) -> None:
    page = on_paper(digits.images[0])
    answer = post(asked, encoded(page))
    assert answer.status_code == 200
    said = answer.json()
    expected = normalise(page)
    assert said["normalised"] == {
        "height": 28,
        "width": 28,
        "pixels": expected.ravel().tolist(),
    }
    answers = said["answers"]
    assert [(each["model"], each["version"]) for each in answers] == [
        ("three", "1"),
        ("a", "1"),
        ("b", "2"),
    ]
    for each in answers:
        raw = asked.stub.ModelInfer(images_request(expected[np.newaxis], each["model"]))
        shares = np.frombuffer(raw.raw_output_contents[0], "<f4")
        assert each["probabilities"] == pytest.approx(shares.tolist(), abs=1e-7)
        assert each["label"] == each["classes"][int(shares.argmax())]
        assert each["batch_size"] >= 1
        assert min(each["seconds"].values()) >= 0
        assert each["seconds"]["total"] >= each["seconds"]["compute"] > 0
    assert said["seconds"]["total"] >= said["seconds"]["decode"] > 0


def test_one_model_is_asked_by_name_and_version(asked: Running, digits: Digits) -> None:
    file = encoded(on_paper(digits.images[0]))
    for path, version in (("?model=b", "2"), ("?model=b&version=1", "1")):
        (only,) = post(asked, file, path).json()["answers"]
        assert (only["model"], only["version"]) == ("b", version)
    assert "nobody" in refused(post(asked, file, "?model=nobody"), 404)
    assert "'9'" in refused(post(asked, file, "?model=b&version=9"), 404)
    assert "takes no digits" in refused(post(asked, file, "?model=echo"), 400)
    assert refused(post(asked, file, "?version=1"), 400) == "version is given without model"


def test_a_prediction_id_takes_feedback(asked: Running, digits: Digits) -> None:
    (only,) = post(asked, encoded(on_paper(digits.images[1])), "?model=a").json()["answers"]
    item = pb.Feedback(prediction_id=only["prediction_id"], label=only["label"])
    request = pb.SendFeedbackRequest(feedback=[item])
    (result,) = pb_grpc.DigitsStub(asked.channel).SendFeedback(request).results
    assert result.outcome == pb.FeedbackResult.COUNTED


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_any_content_type_but_json_is_a_file(kind: str, asked: Running, digits: Digits) -> None:
    file = encoded(on_paper(digits.images[0]), kind)
    types = ("image/jpeg", "application/octet-stream", "", "application/x-www-form-urlencoded")
    answers = [post(asked, file, "?model=a", each).json()["answers"] for each in types]
    assert len({json.dumps(each[0]["probabilities"]) for each in answers}) == 1


def test_pixels_come_as_json_too(asked: Running, digits: Digits) -> None:
    page = on_paper(digits.images[0], factor=2)
    colour = np.stack([page, page, page, np.full_like(page, 255)], axis=2)
    expected = post(asked, encoded(page)).json()["normalised"]
    for pixels in (page, colour[:, :, :3], colour):
        answer = post_json(asked, {"pixels": pixels.tolist()})
        assert (answer.status_code, answer.json()["normalised"]) == (200, expected)


@pytest.mark.parametrize(
    "given",
    [
        [],
        {},
        {"pixels": []},
        {"pixels": [[]]},
        {"pixels": 7},
        {"pixels": "777"},
        {"pixels": None},
        {"pixels": [1, 2, 3]},
        {"pixels": [[0, 256], [0, 0]]},
        {"pixels": [[0, -1], [0, 0]]},
        {"pixels": [[0.5, 255.0], [0, 0]]},
        {"pixels": [[0, float("nan")]]},
        {"pixels": [[0, "255"]]},
        {"pixels": [[0, True]]},
        {"pixels": [0, [0]]},
        {"pixels": [[[0, 0, 0]], [[0, 0]]]},
        {"pixels": [[0, None]]},
        {"pixels": [[0, 255], [0]]},
        {"pixels": [[0, 10**30]]},
        {"pixels": [[[1, 2]] * 3] * 3},
        {"pixels": [[[[0]]]]},
        {"pixels": [[0] * 30] * 30},
        {"pixels": [[0, 255]], "more": 1},
    ],
)
def test_json_that_is_no_image_of_a_digit_is_a_bad_request(given: object, asked: Running) -> None:
    assert refused(post_json(asked, given), 400)


def test_texts_among_pixels_take_no_memory(asked: Running) -> None:
    """As an array, each would be as long as the longest: 400 MB here, of 70 KB."""
    tracemalloc.start()
    try:
        assert refused(post_json(asked, {"pixels": ["a" * 5000] + [""] * 20_000}), 400)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b'{"pixels": [[1, 2'])
def test_what_is_no_json_is_a_bad_request(content: bytes, asked: Running) -> None:
    answer = post(asked, content, kind="application/json")
    assert refused(answer, 400) == "the body is not JSON"


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_image_of_a_digit_is_a_bad_request(name: str, asked: Running) -> None:
    file, fault = BAD_FILES[name]
    assert refused(post(asked, file), 400).startswith(f"image: {fault}")


def test_what_is_too_large_is_refused(asked: Running) -> None:
    assert "2000000 bytes" in refused(post(asked, bytes(2_000_001)), 413)
    answer = post(asked, bytes(MOST_JSON + 1), kind="application/json")
    assert f"{MOST_JSON} bytes" in refused(answer, 413)


def test_only_post_is_taken(asked: Running) -> None:
    assert httpx.get(f"{asked.http_url}/v1/classify").status_code == 405


def test_without_a_model_that_takes_digits_nothing_is_available(
    tmp_path: Path, serve: Serve, digits: Digits, transport: str
) -> None:
    publish_echo(tmp_path, "echo", (-1, 3))
    with serve(tmp_path, transport=transport, allow_http=True) as own:
        answer = post(own, encoded(on_paper(digits.images[0])))
    assert refused(answer, 503) == "no model that takes digits is served"


def test_a_refusal_is_the_models_own_or_the_answer_where_it_was_named(
    tmp_path: Path, serve: Serve, digits: Digits, transport: str
) -> None:
    """Each model has room for one request, which waits for company that never comes."""
    publish_classifier(tmp_path, digits, "a")
    publish_classifier(tmp_path, digits, "b")
    file = encoded(on_paper(digits.images[0]))
    options: dict[str, Any] = {"max_queue_delay": LIFETIME, "max_queue_size": 1}
    with serve(tmp_path, transport=transport, allow_http=True, drain_timeout=0.1, **options) as own:
        waiting: list[Any] = [
            own.stub.ModelInfer.future(images_request(digits.images[:1], name)) for name in "ab"
        ]
        until(lambda: count(own, "in_flight_requests") == 2)
        everyone, named = post(own, file), post(own, file, "?model=b")
        for each in waiting:
            each.cancel()
    assert everyone.status_code == 200
    assert [(each["model"], each["status"]) for each in everyone.json()["answers"]] == [
        ("a", "RESOURCE_EXHAUSTED"),
        ("b", "RESOURCE_EXHAUSTED"),
    ]
    assert refused(named, 429) == "1 requests are already waiting"
    assert int(named.headers["retry-after"]) >= 1


def test_where_there_is_no_room_for_one_no_image_is_read(
    tmp_path: Path, serve: Serve, digits: Digits, transport: str
) -> None:
    publish_classifier(tmp_path, digits, "a")
    options: dict[str, Any] = {"max_queue_delay": LIFETIME, "max_in_flight": 1}
    with serve(tmp_path, transport=transport, allow_http=True, drain_timeout=0.1, **options) as own:
        waits: Any = own.stub.ModelInfer.future(images_request(digits.images[:1], "a"))
        until(lambda: count(own, "in_flight_requests") == 1)
        answer = post(own, b"no image")
        waits.cancel()
    assert refused(answer, 429) == "the server is overloaded"
    assert int(answer.headers["retry-after"]) >= 1


@contextmanager
def held(running: Running, number: int) -> Iterator[Decoding]:
    """So many others' images are being decoded, or wait for that, in the block."""
    decoding = running.server.inference.services.classifier.decoding
    go = threading.Event()
    others = [decoding.submit(go.wait) for _ in range(number)]
    try:
        yield decoding
    finally:
        go.set()
        for each in others:
            each.result()


def test_too_many_at_once_are_told_to_come_again(asked: Running, digits: Digits) -> None:
    file = encoded(on_paper(digits.images[0]))
    with held(asked, DECODING_THREADS + MOST_WAITING):
        answer = post(asked, file, "?model=a")
    assert refused(answer, 429) == "too many images wait to be decoded"
    assert answer.headers["retry-after"] == "1"
    assert post(asked, file).status_code == 200


def test_who_goes_away_while_its_image_waits_gives_its_place_to_another(
    asked: Running, digits: Digits
) -> None:
    file = encoded(on_paper(digits.images[0]))
    head = f"POST /v1/classify HTTP/1.1\r\nContent-Length: {len(file)}\r\n\r\n"
    with held(asked, DECODING_THREADS) as decoding:
        port = asked.server.http_port
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            client.sendall(head.encode() + file)
            until(lambda: decoding.inside == DECODING_THREADS + 1)
        until(lambda: decoding.inside == DECODING_THREADS)


def test_what_is_refused_before_a_model_is_asked_is_counted(asked: Running, digits: Digits) -> None:
    def counted() -> list[float]:
        return [count(asked, "rejected_total", reason=each) for each in reasons]

    reasons = ("invalid_input", "model_not_found", "overloaded")
    file, before = encoded(on_paper(digits.images[0])), counted()
    post(asked, b"no image")
    post(asked, bytes(2_000_001))
    post(asked, file, "?model=nobody")
    with held(asked, DECODING_THREADS + MOST_WAITING):
        post(asked, file)
    more = [now - then for now, then in zip(counted(), before, strict=True)]
    assert more == [2, 1, 1]


def test_a_version_that_is_gone_once_it_has_answered_is_told_for_its_model_only(
    asked: Running,
) -> None:
    registry = asked.server.inference.registry
    gone = messages.ModelInferResponse(model_name="b", model_version="9")
    reply = Reply(gone.SerializeToString(), Timing("9", 0.0, Stages(1, 0.0, 0.0, 0.0)))
    said = told(registry, registry.get("b", "2"), reply)
    assert isinstance(said, Refusal)
    assert said.status == "NOT_FOUND"

"""/v1/feedback and /v1/quality over a real server: by HTTP what gRPC says of the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import (
    PATIENCE,
    Digits,
    Running,
    publish_calibrated,
    publish_classifier,
    publish_echo,
    running_server,
    until,
)
from test_digits_service import images_request

from serving.digits import MOST_FEEDBACK
from serving.http.strict_json import MOST_JSON
from serving.pb import digits_pb2, digits_pb2_grpc
from serving.prediction_ids import Signer
from serving.predictions import Prediction


@pytest.fixture
def running(tmp_path: Path, digits: Digits, transport: str) -> Iterator[Running]:
    publish_classifier(tmp_path, digits)
    publish_echo(tmp_path, "echo", (-1, 3))
    with running_server(tmp_path, allow_http=True, transport=transport) as server:
        yield server


@pytest.fixture
def client(running: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.http_url, timeout=PATIENCE) as client:
        yield client


def predict(running: Running, digits: Digits, rows: int) -> tuple[list[str], list[str]]:
    """Ids of the first rows' predictions, and what was predicted."""
    answer = running.stub.ModelInfer(images_request(digits.images[:rows]))
    labels = np.frombuffer(answer.raw_output_contents[1], "<i8")
    ids = answer.parameters["prediction_ids"].string_param.split(",")
    return ids, ["37"[label] for label in labels]


def feedback(*items: tuple[str, str]) -> dict[str, Any]:
    return {"feedback": [{"prediction_id": text, "label": label} for text, label in items]}


def test_each_label_is_counted_or_refused_by_itself(
    running: Running, client: httpx.Client, digits: Digits
) -> None:
    (first, second), _ = predict(running, digits, 2)
    (forged,) = Signer([b"a secret of others"]).ids(
        "classifier", "1", 2, [Prediction(0, 1.0, 1.0, 0.1)]
    )
    items = [(first, "3"), (forged, "3"), ("", "3"), (second, ""), (second, "7"), (first, "7")]
    answer = client.post("/v1/feedback", json=feedback(*items))
    assert answer.status_code == 200
    results = answer.json()["results"]
    outcomes = ["COUNTED", "FORGED", "MALFORMED", "MALFORMED", "COUNTED", "REPEATED"]
    assert [each["outcome"] for each in results] == outcomes
    assert [bool(each["reason"]) for each in results] == [False, True, True, True, False, True]


def test_feedback_moves_accuracy_and_confusion_as_grpc_has_them(
    running: Running, client: httpx.Client, digits: Digits
) -> None:
    def told() -> dict[str, Any]:
        models = client.get("/v1/quality", params={"model": "classifier"}).json()["models"]
        (found,) = models
        return dict(found)

    before = told()
    assert (before["feedback_count"], before["accuracy"], before["confusion"]) == (0, None, [])
    ids, predicted = predict(running, digits, 4)
    wrong = "7" if predicted[0] == "3" else "3"
    labels = [wrong, *predicted[1:]]
    client.post("/v1/feedback", json=feedback(*zip(ids, labels, strict=True)))
    after = told()
    assert (after["feedback_count"], after["correct_count"]) == (4, 3)
    assert after["accuracy"]["value"] == 0.75
    assert 0 < after["accuracy"]["low"] < 0.75 < after["accuracy"]["high"] < 1
    assert {"truth": wrong, "predicted": predicted[0], "count": 1} in after["confusion"]
    assert sum(cell["count"] for cell in after["confusion"]) == 4
    stub = digits_pb2_grpc.DigitsStub(running.channel)
    (by_grpc,) = stub.GetQuality(digits_pb2.GetQualityRequest(model_name="classifier")).models
    assert by_grpc.accuracy.low == after["accuracy"]["low"]


def test_what_is_not_known_is_null(client: httpx.Client) -> None:
    (found,) = client.get("/v1/quality").json()["models"]
    for name in ("holdout_accuracy", "probe_accuracy", "estimated_accuracy", "drift"):
        assert found[name] is None
    assert (found["probe_passed"], found["estimate_reliable"]) == (True, False)


def test_what_is_known_without_labels_comes_with_its_window(
    tmp_path: Path, digits: Digits, transport: str
) -> None:
    publish_calibrated(tmp_path, digits, digits)
    found: dict[str, Any] = {}
    with (
        running_server(tmp_path, allow_http=True, drift_window=10, transport=transport) as running,
        httpx.Client(base_url=running.http_url, timeout=PATIENCE) as client,
    ):
        for first in range(0, len(digits.images), 32):
            request = images_request(digits.images[first : first + 32], "calibrated")
            running.stub.ModelInfer(request)

        def judged() -> bool:
            found.update(client.get("/v1/quality").json()["models"][0])
            return bool(found["drift"] and found["drift"]["rows"] == len(digits.images))

        until(judged)
    psi = found["drift"].pop("population_stability_index")
    assert psi == pytest.approx({"ink": 0, "confidence": 0, "label": 0}, abs=1e-9)
    rows = len(digits.images)
    assert found["drift"] == {"drifted": False, "window_seconds": 10, "rows": rows}
    assert found["estimate_reliable"]
    assert 0.9 < found["estimated_accuracy"] < 1


def test_quality_is_told_of_the_model_and_version_asked_for(client: httpx.Client) -> None:
    def listed(**asked: str) -> list[tuple[str, str]]:
        models = client.get("/v1/quality", params=asked).json()["models"]
        return [(each["model"], each["version"]) for each in models]

    assert listed() == listed(model="classifier", version="1") == [("classifier", "1")]
    assert listed(model="echo") == listed(version="7") == []
    for asked in ({"model": "nobody"}, {"model": "classifier", "version": "7"}):
        answer = client.get("/v1/quality", params=asked)
        assert (answer.status_code, list(answer.json())) == (404, ["error"])


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"", "the body is not JSON: Expecting value: line 1 column 1 (char 0)"),
        (b"\xff", "the body is not JSON: "),
        (b"[" * 100_000, "the JSON is nested too deeply"),
        (b'{"feedback": NaN}', "feedback: expected an array, got a text"),
        (b'{"feedback": [], "feedback": []}', "the JSON has 'feedback' twice in one object"),
        (b"[]", "the body: expected an object with feedback, got an array"),
        (b"{}", "feedback: expected an array, got nothing"),
        (b'{"feedback": null}', "feedback: expected an array, got null"),
        (b'{"feedback": {"label": "3"}}', "feedback: expected an array, got an object"),
        (b'{"feedback": [1.5]}', "feedback[0]: expected an object with prediction_id and label"),
        (
            b'{"feedback": [{"prediction_id": "x", "label": "3"}, {"prediction_id": "x"}]}',
            "feedback[1].label: expected a text, got nothing",
        ),
        (
            b'{"feedback": [{"prediction_id": "x", "label": 3}]}',
            "feedback[0].label: expected a text, got a whole number",
        ),
        (
            b'{"feedback": [{"prediction_id": true, "label": "3"}]}',
            "feedback[0].prediction_id: expected a text, got true or false",
        ),
        (
            rb'{"feedback": [{"prediction_id": "\ud800", "label": "3"}]}',
            "feedback[0].prediction_id: expected Unicode, got half of a surrogate pair",
        ),
    ],
)
def test_what_is_no_feedback_is_told_where_and_what_was_expected(
    client: httpx.Client, sent: bytes, error: str
) -> None:
    answer = client.post("/v1/feedback", content=sent)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(error)


def test_feedback_is_bounded_in_number_and_bytes(client: httpx.Client) -> None:
    most = client.post("/v1/feedback", json=feedback(*[("x", "3")] * MOST_FEEDBACK))
    assert len(most.json()["results"]) == MOST_FEEDBACK
    more = client.post("/v1/feedback", json=feedback(*[("x", "3")] * (MOST_FEEDBACK + 1)))
    assert more.status_code == 400
    assert more.json() == {"error": "feedback: at most 10000 in one request, got 10001"}
    padded = json.dumps(feedback(("x", "3"))).encode().ljust(MOST_JSON)
    assert client.post("/v1/feedback", content=padded).status_code == 200
    assert client.post("/v1/feedback", content=padded + b" ").status_code == 413


def test_another_sites_page_cannot_send_feedback(client: httpx.Client) -> None:
    headers = {"Sec-Fetch-Site": "cross-site"}
    answer = client.post("/v1/feedback", json=feedback(), headers=headers)
    assert answer.status_code == 403
    assert client.post("/v1/feedback", json=feedback()).json() == {"results": []}

"""The overview and the reports over a real server, and all that a report's path must not reach."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import (
    CLASSIFIER_OUTPUTS,
    IMAGES,
    PATIENCE,
    THREES_AND_SEVENS,
    Digits,
    publish_classifier,
    publish_echo,
    running_server,
    save_classifier,
)

from model_repository import ONNX_PLATFORM, Draft, Variant, publish, staging

PAGE = "<!doctype html><title>A report</title><style>p { color: red }</style><p>ß"


def publish_reported(repository: Path, digits: Digits, name: str = "reported") -> Path:
    """Publish the classifier with a report."""
    with staging(repository) as directory:
        save_classifier(directory / "model.onnx", digits)
        (directory / "report.html").write_text(PAGE, encoding="utf-8")
        variant = Variant("model.onnx", ONNX_PLATFORM, "fp32", "", accuracy=0.75)
        facts: dict[str, object] = {"labels": THREES_AND_SEVENS, "accuracy": 0.875}
        draft = Draft(name, (IMAGES,), CLASSIFIER_OUTPUTS, (variant,), facts)
        return publish(directory, draft)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, digits: Digits) -> Path:
    """Two versions of `reported`, of which one is served, and models without a report; `broken` is
    not what its manifest says."""
    path = tmp_path_factory.mktemp("panel") / "models"
    for _ in range(2):
        publish_reported(path, digits)
    publish_classifier(path, digits)
    publish_echo(path, "echo", (-1, 3))
    broken = publish_reported(path, digits, "broken")
    (broken / "model.onnx").write_bytes(b"no model")
    return path


@pytest.fixture(scope="module")
def client(repository: Path) -> Iterator[httpx.Client]:
    with (
        running_server(repository, allow_http=True, transport="grpcio") as running,
        httpx.Client(base_url=running.http_url, timeout=PATIENCE) as client,
    ):
        yield client


def by_name(overview: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(each["name"], each["version"]): each for each in overview["models"]}


def test_the_overview_tells_of_the_server_and_of_what_each_version_is(client: httpx.Client) -> None:
    overview = client.get("/v1/overview").json()
    assert overview["server"]["name"] == "digits"
    assert overview["server"]["ready"] is True
    assert by_name(overview)["reported", "2"] == {
        "name": "reported",
        "version": "2",
        "state": "READY",
        "reason": "",
        "precision": "fp32",
        "device": "cpu",
        "accuracy": 0.75,
        "classes": ["3", "7"],
        "takes_digits": True,
        "report": "/v1/models/reported/versions/2/report",
    }


def test_what_takes_no_digits_or_was_published_without_a_report_is_told_so(
    client: httpx.Client,
) -> None:
    models = by_name(client.get("/v1/overview").json())
    echo, classifier = models["echo", "1"], models["classifier", "1"]
    assert (echo["takes_digits"], echo["classes"], echo["accuracy"]) == (False, [], None)
    assert (classifier["takes_digits"], classifier["accuracy"]) == (True, None)
    assert echo["report"] is classifier["report"] is None


def test_what_is_not_served_is_told_with_why(client: httpx.Client) -> None:
    broken = by_name(client.get("/v1/overview").json())["broken", "1"]
    assert broken["state"] == "UNAVAILABLE"
    assert "sha256" in broken["reason"]
    assert (broken["precision"], broken["device"], broken["takes_digits"]) == ("", "", False)
    assert broken["report"] == "/v1/models/broken/versions/1/report"


def test_models_of_digits_come_first_and_the_more_accurate_of_them_before_others(
    client: httpx.Client,
) -> None:
    names = [each["name"] for each in client.get("/v1/overview").json()["models"]]
    assert names[:2] == ["reported", "classifier"]


def test_the_history_is_of_every_version_that_is_served(client: httpx.Client) -> None:
    models = client.get("/v1/overview").json()["history"]["models"]
    found = [(each["model"], each["version"]) for each in models]
    assert found == [("classifier", "1"), ("echo", "1"), ("reported", "2")]


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_report_is_the_file_that_was_published_and_runs_nothing(
    client: httpx.Client, version: str
) -> None:
    answer = client.get(f"/v1/models/reported/versions/{version}/report")
    assert answer.status_code == 200
    assert answer.text == PAGE
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = answer.headers["Content-Security-Policy"].split("; ")
    assert policy[:3] == ["default-src 'none'", "style-src 'unsafe-inline'", "img-src data:"]
    assert "sandbox" in policy
    assert "script" not in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("nobody", "1"),
        ("classifier", "1"),
        ("reported", "3"),
        ("reported", "01"),
        ("reported", "+1"),
        ("reported", "1_0"),
        ("reported", "%D9%A2"),  # two, in Arabic
        ("reported", "0"),
        ("reported", "-1"),
        ("reported", "latest"),
        ("reported", "9" * 5000),
        ("r" * 5000, "1"),
        (".", "1"),
        ("..", "1"),
        ("readiness", "1"),
        ("reported%00", "1"),
        ("reported", "1%00"),
        ("..%2Fmodels%2Freported", "1"),
        ("reported", "..%2Freported%2F1"),
        ("%2E%2E", "%2E%2E"),
        ("..%5Cmodels", "1"),
    ],
)
def test_what_has_no_report_is_not_found(client: httpx.Client, name: str, version: str) -> None:
    """Asked for as it stands here: httpx would take the dots out of a path."""
    connection = http.client.HTTPConnection(client.base_url.netloc.decode(), timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", f"/v1/models/{name}/versions/{version}/report")
        answer = connection.getresponse()
        assert (answer.status, list(json.load(answer))) == (404, ["error"])


def test_a_link_or_another_file_in_a_reports_place_is_not_sent(
    tmp_path: Path, digits: Digits
) -> None:
    repository, secret = tmp_path / "models", tmp_path / "secret"
    secret.write_text("a secret of this test")
    names = ("linked", "changed", "pipe", "gone", "outside", "within")
    places = {name: publish_reported(repository, digits, name) for name in names}
    for name in ("linked", "pipe", "gone"):
        (places[name] / "report.html").unlink()
    (places["linked"] / "report.html").symlink_to(secret)
    (places["changed"] / "report.html").write_text("<script>alert(1)</script>")
    os.mkfifo(places["pipe"] / "report.html")
    places["outside"].rename(tmp_path / "elsewhere")
    places["outside"].symlink_to(tmp_path / "elsewhere")
    places["within"].rename(repository / "kept")
    places["within"].symlink_to(repository / "kept")
    with (
        running_server(repository, allow_http=True, transport="grpcio") as running,
        httpx.Client(base_url=running.http_url, timeout=PATIENCE) as client,
    ):

        def asked(name: str) -> tuple[int, str]:
            answer = client.get(f"/v1/models/{name}/versions/1/report")
            return answer.status_code, answer.text

        for name in set(names) - {"within"}:
            status, text = asked(name)
            assert status == 404, name
            assert "secret" not in text
        assert asked("within") == (200, PAGE)
        assert asked("changed")[1].endswith('its report is not as published"}')

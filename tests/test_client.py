"""The client library, against a real server."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from conftest import (
    PATIENCE,
    Digits,
    Running,
    publish_classifier,
    publish_times,
    running_server,
    times_request,
    under_load,
)
from scripted import Scripted, serving

from deploy.ports import reserved_port
from serving.async_client import AsyncClient
from serving.client import Classification, Client, Prediction, RequestFailed
from serving.client_channel import TORCHSERVE_SERVICE, is_local


def test_images_come_back_with_named_labels_and_probabilities(
    running: Running, digits: Digits
) -> None:
    with Client(running.address) as client:
        answer = client.classify(digits.images, "classifier")
    assert len(digits.images) > 64  # so that it took several requests
    named = np.array(["3", "7"])[digits.classes]
    assert (np.array(answer.labels) == named).mean() > 0.95
    assert answer.probabilities.shape == (len(digits.images), 2)
    assert (answer.model, answer.version, answer.classes) == ("classifier", "1", ("3", "7"))


def test_a_classification_is_a_sequence_of_predictions(running: Running, digits: Digits) -> None:
    with Client(running.address) as client:
        answer = client.classify(digits.images[:3], "classifier")
    predictions = list(answer)
    assert [each.label for each in predictions] == list(answer.labels)
    assert answer[2] == predictions[2]
    assert len(answer) == 3
    first = predictions[0]
    assert first.probabilities == dict(zip("37", answer.probabilities[0], strict=True))
    assert first.probability == max(first.probabilities.values())
    assert first.prediction_id == answer.prediction_ids[0]
    assert (first.model, first.version) == ("classifier", "1")


def test_what_was_answered_is_shown_in_a_line() -> None:
    rows = np.array([[0.25, 0.75]] * 6, np.float32)
    answer = Classification("m", "2", ("7",) * 6, rows, ("3", "7"))
    shown = ", ".join(["'7' 0.7500"] * 5)
    assert repr(answer) == f"<Classification of 6 by m version 2: {shown}, ...>"
    assert repr(answer[0]) == "<Prediction '7' 0.7500 by m version 2>"


def test_predictions_are_told_their_truths_one_or_all(digits: Digits, tmp_path: Path) -> None:
    publish_classifier(tmp_path, digits)
    with running_server(tmp_path) as running, Client(running.address) as client:
        answer = client.classify(digits.images[:3], "classifier")
        assert client.feedback(answer[0], 7).outcome == "counted"
        outcomes = [each.outcome for each in client.feedback(answer, ["7", 7, "3"])]
        assert outcomes == ["repeated", "counted", "counted"]
        assert client.feedback(answer[0], np.int64(7)).outcome == "repeated"
        (quality,) = client.quality("classifier")
        assert quality.feedback_count == 3


def test_what_cannot_be_told_is_refused_before_it_is_sent(running: Running) -> None:
    anonymous = Prediction("3", 1.0, {"3": 1.0}, "", "m", "1")
    answer = Classification("m", "1", ("3",), np.ones((1, 1), np.float32), ("3",), ("id",))
    with Client(running.address) as client:
        with pytest.raises(ValueError, match="came without prediction ids"):
            client.feedback(anonymous, "3")
        with pytest.raises(ValueError, match="1 prediction ids, but 2 labels"):
            client.feedback(answer, ["3", "7"])
        with pytest.raises(ValueError, match="need as many labels, in a list"):
            client.feedback(answer, "3")


def test_models_and_what_they_take_are_listed(running: Running) -> None:
    with Client(running.address) as client:
        found = {each.name: each for each in client.models()}
        assert set(found) == {"classifier", "echo", "echo_fixed"}
        one = found["classifier"]
        assert (one.version, one.state, one.reason) == ("1", "READY", "")
        known = client.metadata("classifier")
        assert [(each.name, each.datatype, each.shape) for each in known.inputs] == [
            ("images", "UINT8", (-1, 28, 28))
        ]
        assert known.classes == ("3", "7")
        assert client.server().name == "digits"


def test_statistics_count_what_was_asked(running: Running, digits: Digits) -> None:
    with Client(running.address) as client:
        (before,) = client.statistics("classifier")
        client.classify(digits.images[:5], "classifier")
        (after,) = client.statistics("classifier")
    assert (after.requests - before.requests, after.rows - before.rows) == (1, 5)
    assert after.seconds > before.seconds


def test_one_image_needs_no_batch_dimension(running: Running, digits: Digits) -> None:
    with Client(running.address) as client:
        assert client.classify(digits.images[0], "classifier").probabilities.shape == (1, 2)


@pytest.mark.parametrize(
    "images", [np.zeros((1, 28, 28)), np.zeros((0, 28, 28), np.uint8), np.zeros(784, np.uint8)]
)
def test_what_are_no_images_is_refused_before_it_is_sent(
    running: Running, images: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
) -> None:
    with Client(running.address) as client, pytest.raises(ValueError, match="must be uint8"):
        client.classify(images, "classifier")


def test_a_refusal_carries_the_servers_status_and_words(running: Running, digits: Digits) -> None:
    with Client(running.address) as client, pytest.raises(RequestFailed) as caught:
        client.classify(digits.images[:1], "resnet")
    assert caught.value.code == grpc.StatusCode.NOT_FOUND
    assert str(caught.value) == "NOT_FOUND: model 'resnet' is unknown"


def test_readiness_is_that_of_the_server_or_of_one_model(running: Running) -> None:
    with Client(running.address) as client:
        assert client.ready()
        assert client.ready(model="classifier")
        assert not client.ready(model="nobody")
    with Client(f"127.0.0.1:{reserved_port()}", retry=True) as client:
        start = time.monotonic()
        assert not client.ready(timeout=PATIENCE)
        assert time.monotonic() - start < PATIENCE / 2  # it did not wait for one to come


def test_a_server_that_does_not_become_ready_is_told_with_the_reason(running: Running) -> None:
    with Client(running.address) as client:
        client.wait_until_ready(PATIENCE, model="classifier")
        with pytest.raises(RequestFailed, match="model 'nobody' is not served") as caught:
            client.wait_until_ready(1.0, model="nobody")
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_server_that_comes_later_is_waited_for(digits: Digits, tmp_path: Path) -> None:
    publish_classifier(tmp_path, digits)
    port = reserved_port()
    with Client(f"127.0.0.1:{port}") as client, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.wait_until_ready, PATIENCE)
        with running_server(tmp_path, grpc_port=port):
            waiting.result()
            assert client.ready(model="classifier")


def test_a_token_goes_with_each_call_and_nowhere_else() -> None:
    script = Scripted([])
    with serving(script) as address, Client(address, token="s3cret") as client:
        client.quality()
        client.server()
        assert "s3cret" not in repr(client)
    assert [each["authorization"] for each in script.metadata] == ["Bearer s3cret"] * 2


def test_a_token_within_this_machine_does_not_go_by_a_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("no_grpc_proxy", "no_proxy", "grpc_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as proxy, serving(Scripted([])) as address:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        with Client(address, token="s3cret") as client:
            assert client.quality(timeout=PATIENCE) == []
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()


def test_a_token_is_not_sent_in_plain_text_to_another_machine() -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match="plain text") as caught:
            kind("example.org:8001", token="s3cret")
        assert "s3cret" not in str(caught.value)
    Client("example.org:8001", token="s3cret", allow_plain_token=True).close()
    Client("example.org:8001", token="s3cret", tls=True).close()


@pytest.mark.parametrize("token", ["", "two\nlines", "schlüssel"])
def test_a_token_that_no_header_can_hold_is_refused_without_telling_it(token: str) -> None:
    with pytest.raises(ValueError, match="must be printable ASCII") as caught:
        Client(token=token)
    assert str(caught.value) == "a token must be printable ASCII"


@pytest.mark.parametrize(
    "address",
    [
        *("localhost:8001", "127.0.0.1:8001", "127.8.0.1", "[::1]:8001", "::1", "unix:/run/d.sock"),
        *("dns:///localhost:1", "ipv4:127.0.0.1:1,127.0.0.2:2", "ipv6:[::1]:8001"),
    ],
)
def test_an_address_within_this_machine_is_known(address: str) -> None:
    assert is_local(address)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "example.org:8001",
            "10.0.0.1:1",
            "dns:///digits:8001",
            "[2001:db8::1]:8001",
            "0.0.0.0:1",
        ),
        *("ipv4:127.0.0.1:1,10.0.0.1:1", "localhost.example.org:1", "dns://127.0.0.1/digits:1"),
    ],
)
def test_an_address_that_may_be_elsewhere_is_known(address: str) -> None:
    assert not is_local(address)


def test_the_service_is_called_by_the_name_it_is_given(running: Running, digits: Digits) -> None:
    client = Client(running.address, service=TORCHSERVE_SERVICE)
    with client, pytest.raises(RequestFailed) as caught:
        client.classify(digits.images[:1], "classifier")
    assert caught.value.code == grpc.StatusCode.UNIMPLEMENTED


def test_a_name_with_several_addresses_is_asked_in_turns(digits: Digits, tmp_path: Path) -> None:
    for name, published in (("a", 1), ("b", 2)):  # the version tells which of them answered
        for _ in range(published):
            publish_classifier(tmp_path / name, digits)
    with running_server(tmp_path / "a") as one, running_server(tmp_path / "b") as other:
        ports = [running.address.rpartition(":")[2] for running in (one, other)]
        address = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
        with Client(address, load_balancing="round_robin") as client:

            def versions(requests: int) -> Counter[str]:
                image = digits.images[0]
                answers = (client.classify(image, "classifier") for _ in range(requests))
                return Counter(answer.version for answer in answers)

            end = time.monotonic() + PATIENCE
            while len(versions(2)) < 2 and time.monotonic() < end:
                pass  # until both are connected
            assert versions(10) == {"1": 5, "2": 5}
        with Client(address) as client:
            assert versions(10) == {"1": 10}


@pytest.mark.parametrize("rows", [1, 500])  # gRPC by itself repeats none beyond 256 KiB
def test_with_retry_a_restart_is_a_slow_answer(rows: int, digits: Digits, tmp_path: Path) -> None:
    publish_classifier(tmp_path, digits)
    port = reserved_port()
    images = np.resize(digits.images, (rows, 28, 28))
    answers, over = Counter[int](), threading.Event()

    def ask(caller: int) -> None:
        with Client(f"127.0.0.1:{port}", retry=True) as client:
            while not over.is_set():
                client.classify(images, "classifier", timeout=PATIENCE, rows_per_request=rows)
                answers[caller] += 1

    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(ask, caller) for caller in range(2)]
        for restart in range(3):
            with running_server(tmp_path, grpc_port=port, max_batch_size=512):
                wanted = {caller: answers[caller] + 3 for caller in range(2)}
                end = time.monotonic() + PATIENCE
                while any(answers[each] < wanted[each] for each in wanted):
                    assert time.monotonic() < end
                    assert not any(call.done() for call in calls)
                    time.sleep(0.01)
                if restart == 2:
                    over.set()
                    assert [call.result() for call in calls] == [None, None]


def test_connections_that_have_to_be_renewed_lose_no_request(tmp_path: Path) -> None:
    publish_times(tmp_path)
    with running_server(tmp_path, max_connection_age=0.1) as running:
        states: list[grpc.ChannelConnectivity] = []
        running.channel.subscribe(heard := states.append)
        with under_load(running.address) as load:
            end = time.monotonic() + PATIENCE
            while states.count(grpc.ChannelConnectivity.READY) < 4 and time.monotonic() < end:
                running.stub.ModelInfer(times_request(1.0))
        running.channel.unsubscribe(heard)
    assert states.count(grpc.ChannelConnectivity.READY) >= 4
    assert load.answers > 20
    assert load.faults == []


def test_as_many_labels_as_predictions_are_needed(running: Running) -> None:
    with Client(running.address) as client, pytest.raises(ValueError, match="2 prediction ids"):
        client.send_feedback(["a", "b"], ["3"])

"""The client library and its command line, against a real server."""

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
from PIL import Image

from deploy.ports import reserved_port
from serving.client import Client, Drift, Interval, ModelQuality, RequestFailed, main
from serving.client_channel import TORCHSERVE_SERVICE
from serving.client_described import described


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


def save_png(path: Path, digits: Digits, index: int) -> str:
    Image.fromarray(digits.images[index]).save(path)
    return str(path)


def test_the_command_prints_file_label_and_probability(
    running: Running, digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three, seven = int(np.argmin(digits.classes)), int(np.argmax(digits.classes))
    files = [save_png(tmp_path / f"{i}.png", digits, i) for i in (three, seven)]
    arguments = ["classify", *files, "--model", "classifier", "--address", running.address]
    assert main(arguments) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows] == [[files[0], "3"], [files[1], "7"]]
    assert all(0.5 < float(row[2]) <= 1 for row in rows)


def test_the_commands_take_labels_and_show_what_they_say(
    digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_classifier(tmp_path / "models", digits)
    three, seven = int(np.argmin(digits.classes)), int(np.argmax(digits.classes))
    files = [save_png(tmp_path / f"{i}.png", digits, i) for i in (three, seven)]
    with running_server(tmp_path / "models") as running:
        at = ["--address", running.address]

        def said(*arguments: str) -> list[str]:
            assert main([*arguments, *at]) == 0
            return capsys.readouterr().out.splitlines()

        assert said("quality") == ["classifier version 1", "  accuracy    no labels yet"]
        rows = said("classify", *files, "--model", "classifier", "--ids")
        ids = [row.split("\t")[3] for row in rows]
        assert said("feedback", ids[0], "3") == ["counted"]
        assert said("feedback", ids[0], "3") == ["repeated"]
        assert said("feedback", ids[1], "9") == ["counted"]
        assert said("quality", "--model", "classifier") == [
            "classifier version 1",
            "  accuracy    0.5000  (95% interval 0.0945 to 0.9055), 1 of 2 labels",
            "",
            "  truth  predicted",
            "           3  7",
            "  3        1  .",
            "  other    .  1",
        ]
        assert main(["feedback", "no id", "3", *at]) == 1
        reason = "malformed: not a prediction id"
        assert capsys.readouterr().err == f"error: {running.address}: {reason}\n"
        assert main(["quality", "--model", "nobody", *at]) == 1
        assert capsys.readouterr().err.startswith(f"error: {running.address}: NOT_FOUND: ")


def test_all_that_is_known_of_a_version_is_shown() -> None:
    confusion = {("10", "9"): 1, ("9", "9"): 1234, ("other", "10"): 20, ("9", "10"): 3}
    share = Interval(0.98, 0.9687, 0.9873)
    drift = Drift({"label": 0.3, "ink": 0.0123}, True, 600.0, 5000)
    quality = ModelQuality(
        *("m", "2", 1258, 1234, share, confusion, 0.99, 0.985, False, 0.9512, False, drift)
    )
    assert list(described(quality)) == [
        "m version 2",
        "  accuracy    0.9800  (95% interval 0.9687 to 0.9873), 1234 of 1258 labels",
        "  holdout     0.9900",
        "  probe       0.9850  (failed)",
        "  estimated   0.9512  (unreliable: the inputs drifted)",
        "  drift       YES: ink 0.012, label 0.300  (5000 rows in 600 s)",
        "",
        "  truth  predicted",
        "              9    10",
        "  9        1234     3",
        "  10          1     .",
        "  other       .    20",
    ]
    few = Drift({}, False, 600.0, 12)
    quality = ModelQuality("m", "2", 0, 0, None, {}, None, None, True, 0.5, True, few)
    assert list(described(quality)) == [
        "m version 2",
        "  accuracy    no labels yet",
        "  estimated   0.5000",
        "  drift       no: too few rows  (12 rows in 600 s)",
    ]


def test_as_many_labels_as_predictions_are_needed(running: Running) -> None:
    with Client(running.address) as client, pytest.raises(ValueError, match="2 prediction ids"):
        client.send_feedback(["a", "b"], ["3"])


@pytest.mark.parametrize("content", [None, b"", b"\x89PNG\r\n\x1a\n garbage"])
def test_a_bad_file_is_one_line_and_status_2(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.png"
    if content is not None:
        file.write_bytes(content)
    assert main(["classify", str(file), "--model", "classifier"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(file) in error
    assert error.count("\n") == 1


def test_a_server_that_is_not_there_is_one_line_and_status_1(
    digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    file = save_png(tmp_path / "3.png", digits, 0)
    assert main(["classify", file, "--model", "classifier", "--address", address]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {address}: UNAVAILABLE: ")
    assert error.count("\n") == 1

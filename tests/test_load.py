"""`python -m deploy.load` against a real server, one that drains and comes back, and none."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import (
    PATIENCE,
    ROOT,
    Digits,
    publish_proven,
    running_server,
    server_process,
)
from numpy.typing import NDArray

from deploy import load
from deploy.prometheus_server import free_port
from model_repository import HOLDOUT, ONNX_PLATFORM, Variant
from serving.client import Client, RequestFailed

MODEL = "proven"
IMAGES = 40


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory, digits: Digits) -> Path:
    """A repository with a classifier that has a labelled holdout."""
    repository = tmp_path_factory.mktemp("models")
    publish_labelled(repository, digits)
    return repository


def publish_labelled(repository: Path, digits: Digits) -> Path:
    holdout: dict[str, NDArray[np.generic]] = {
        "images": digits.images[:IMAGES],
        "labels": digits.classes[:IMAGES],
    }
    variant = Variant("model.onnx", ONNX_PLATFORM, "fp32", "")
    return publish_proven(repository, digits, variant, holdout=holdout)


@contextmanager
def loading(repository: Path, address: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The command, killed after half a minute or when left."""
    command = [sys.executable, "-m", "deploy.load", "--address", address, "--model", MODEL]
    command += ["--model-repository", str(repository), *options]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def loaded(repository: Path, address: str, *options: str) -> tuple[int, dict[str, Any]]:
    """The command's exit status and tally."""
    with loading(repository, address, *options) as process:
        out, _ = process.communicate(timeout=PATIENCE)
        return process.returncode, json.loads(out)


def test_what_it_counts_is_what_the_server_counts(proven: Path) -> None:
    with running_server(proven) as running, Client(running.address) as client:
        options = ("--requests", "50", "--clients", "3", "--wrong-every", "4")
        status, tally = loaded(proven, running.address, *options)
        (told,) = client.quality(MODEL)
    assert (status, tally["requests"], tally["versions"]) == (0, 50, {"1": 50})
    assert (tally["lost"], tally["feedback_refused"], tally["unanswered_tries"]) == (0, 0, 0)
    assert tally["rows"] == tally["right"] + tally["wrong"] == told.feedback_count
    assert tally["right"] == told.correct_count
    # Each of the 40 images is sent about as often, and the model itself is right for nearly all.
    assert tally["wrong"] / tally["rows"] == pytest.approx(0.25, abs=0.1)
    assert 0 < tally["p50_seconds"] <= tally["p99_seconds"] < PATIENCE


def test_without_feedback_no_label_is_told_and_the_tally_may_be_a_file(
    proven: Path, tmp_path: Path
) -> None:
    file = tmp_path / "tally.json"
    with running_server(proven) as running, Client(running.address) as client:
        options = ("--requests", "5", "--no-feedback", "--tally", str(file))
        with loading(proven, running.address, *options) as process:
            assert process.communicate(timeout=PATIENCE) == ("", "")
        (told,) = client.quality(MODEL)
    tally = json.loads(file.read_text())
    assert (process.returncode, tally["requests"], told.feedback_count) == (0, 5, 0)
    assert tally["rows"] == tally["right"] + tally["wrong"] == 1 + 2 + 3 + 4 + 5


def test_a_rate_is_kept_by_all_clients_together(proven: Path) -> None:
    with running_server(proven) as running:
        options = ("--requests", "20", "--clients", "3", "--rate", "20")
        status, tally = loaded(proven, running.address, *options)
    assert (status, tally["requests"]) == (0, 20)
    assert tally["seconds"] >= 19 / 20


def test_it_ends_after_its_duration_or_at_sigterm_with_a_tally(proven: Path) -> None:
    with running_server(proven) as running:
        status, tally = loaded(proven, running.address, "--duration", "0.5", "--rate", "50")
        assert (status, tally["lost"]) == (0, 0)
        assert 0.5 <= tally["seconds"] < PATIENCE
        with loading(proven, running.address) as process, Client(running.address) as client:
            wait_for_labels(client, above=tally["rows"])
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, json.loads(out)["lost"]) == (0, 0)


def wait_for_labels(client: Client, above: int) -> None:
    end = time.monotonic() + PATIENCE
    while client.quality(MODEL)[0].feedback_count <= above:
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_server_that_is_restarted_meanwhile_loses_nothing(proven: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(secrets.token_hex(32))
    port = str(free_port(0))
    flags = ["--grpc-port", port, "--feedback-key-file", str(key)]
    flags += ["--model-repository", str(proven)]
    with server_process(*flags) as first:
        first.wait_for("ready")
        with loading(
            proven, f"localhost:{port}", "--clients", "2", "--retry", str(PATIENCE)
        ) as process:
            with Client(f"localhost:{port}") as client:
                wait_for_labels(client, above=10)
                first.popen.send_signal(signal.SIGTERM)
                assert first.finish() == 0
            with server_process(*flags) as second:
                second.wait_for("ready")
                with Client(f"localhost:{port}") as client:
                    wait_for_labels(client, above=10)
                process.send_signal(signal.SIGTERM)
                out, _ = process.communicate(timeout=PATIENCE)
    tally = json.loads(out)
    assert (process.returncode, tally["lost"], tally["feedback_refused"]) == (0, 0, 0)
    assert tally["unanswered_tries"] > 0


def test_what_is_not_answered_within_the_retries_is_lost(proven: Path) -> None:
    address = f"localhost:{free_port(0)}"
    status, tally = loaded(proven, address, "--requests", "3", "--retry", "0.2")
    assert (status, tally["requests"], tally["lost"]) == (1, 0, 3)
    assert tally["p99_seconds"] is None


def test_a_model_that_the_server_has_not_is_refused_at_once(proven: Path, repository: Path) -> None:
    with (
        running_server(repository) as running,
        loading(proven, running.address, "--retry", "60") as process,
    ):
        out, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (1, "")
    assert errors.startswith(f"error: {running.address}: NOT_FOUND: ")


def test_one_client_that_is_refused_ends_all(proven: Path, digits: Digits) -> None:
    good = load.Batch(digits.images[:1], ("3",))
    bad = load.Batch(np.zeros((1, 2, 2), np.uint8), ("3",))
    source = iter([*[good] * 20, bad, *[good] * 5_000])
    with (
        running_server(proven) as running,
        pytest.raises(RequestFailed, match="INVALID_ARGUMENT"),
    ):
        load.run(running.address, MODEL, source, clients=4)
    assert len(list(source)) > 2_500


def test_labels_that_are_refused_count_as_such_and_fail_the_load(proven: Path) -> None:
    with running_server(proven, feedback_ttl=1e-6) as running:
        status, tally = loaded(proven, running.address, "--requests", "2")
    assert (status, tally["rows"], tally["feedback_refused"], tally["lost"]) == (1, 3, 3, 0)


def test_labels_for_answers_without_ids_count_as_refused(proven: Path) -> None:
    with running_server(proven, prediction_ids=False) as running:
        status, tally = loaded(proven, running.address, "--requests", "2")
    assert (status, tally["rows"], tally["feedback_refused"]) == (1, 3, 3)


def test_a_holdout_file_has_its_class_names_from_the_manifest_beside_it(proven: Path) -> None:
    command = [sys.executable, "-m", "deploy.load", "--model", MODEL, "--requests", "4"]
    with running_server(proven) as running:
        command += ["--address", running.address, "--holdout", str(proven / MODEL / "1" / HOLDOUT)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, json.loads(done.stdout)["rows"]) == (0, 1 + 2 + 3 + 4)


def test_what_there_is_nothing_to_send_of_is_told(tmp_path: Path, digits: Digits) -> None:
    with loading(tmp_path, "localhost:1") as process:
        _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (2, f"error: {tmp_path / MODEL}: no version\n")
    variant = Variant("model.onnx", ONNX_PLATFORM, "fp32", "")
    images = {"images": np.zeros((2, 28, 28), np.uint8)}
    file = publish_proven(tmp_path, digits, variant, holdout=images) / HOLDOUT
    with loading(tmp_path, "localhost:1") as process:
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert errors.startswith(f"error: {file}: 'labels is not a file in the archive")

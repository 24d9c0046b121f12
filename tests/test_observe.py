"""The parts of `make observe` that decide whether two counts agree; CI runs the whole."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PATIENCE, ROOT, Digits

from deploy import load
from deploy.agreement import one_bucket_above
from deploy.load import Tally
from deploy.prometheus_server import HOW_TO_GET_IT


def test_one_label_in_ten_is_sent_wrong() -> None:
    labels = ["3", "7", "5"] * 10
    sent = load.mislabelled(labels, ("3", "5", "7"))
    wrong = [n for n, (said, true) in enumerate(zip(sent, labels, strict=True)) if said != true]
    assert wrong == [0, 10, 20]
    assert [sent[n] for n in wrong] == ["5", "3", "7"]


def test_every_image_is_sent_once_with_its_label_in_requests_of_one_to_eight(
    digits: Digits,
) -> None:
    labels = [str(each) for each in digits.classes]
    sent = list(load.batches(digits.images, labels))
    assert np.concatenate([batch.images for batch in sent]).tobytes() == digits.images.tobytes()
    assert [label for batch in sent for label in batch.labels] == labels
    assert [len(batch.labels) for batch in sent[:9]] == [1, 2, 3, 4, 5, 6, 7, 8, 1]


def test_a_quantile_is_the_time_within_which_that_share_was_answered() -> None:
    tally = Tally(seconds=[0.1 * n for n in range(100, 0, -1)])
    assert tally.quantile(0.99) == 0.1 * 99
    assert tally.quantile(0.5) == 0.1 * 50
    assert Tally(seconds=[2.0]).quantile(0.5) == 2.0


def test_the_bucket_of_a_latency_ends_where_prometheus_says_at_most() -> None:
    assert one_bucket_above(0.0015) == 0.002
    assert one_bucket_above(0.002) == 0.002
    assert one_bucket_above(11) == math.inf


def observe(models: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.observe", "--once", "--model-repository", str(models)]
    variables = {**os.environ, **environment}
    return subprocess.run(
        [*command, *options],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_without_prometheus_it_says_how_to_get_it_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    done = observe(tmp_path / "models", PATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {HOW_TO_GET_IT}\n")
    assert not (tmp_path / "models").exists()


@pytest.mark.prometheus
def test_a_port_that_is_taken_or_none_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = observe(tmp_path / "models", PROMETHEUS_PORT=port)
    message = f"error: port {port} is taken; set PROMETHEUS_PORT\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)
    none = observe(tmp_path / "models", PROMETHEUS_PORT="web")
    assert (none.returncode, none.stderr) == (1, "error: PROMETHEUS_PORT is no port: web\n")
    assert not (tmp_path / "models").exists()


def test_a_load_of_no_seconds_is_refused(tmp_path: Path) -> None:
    done = observe(tmp_path / "models", "--seconds", "0")
    assert done.returncode == 2
    assert "argument --seconds: at least 1" in done.stderr


def test_what_runs_here_is_not_asked_by_way_of_a_proxy() -> None:
    program = (
        "import os, urllib.request as request\n"
        "from deploy.service import bypass_proxy\n"
        "bypass_proxy()\n"
        "hosts = 'localhost', '127.0.0.1', 'a.org'\n"
        "print(os.environ['no_proxy'], [bool(request.proxy_bypass(host)) for host in hosts])"
    )
    variables = {**os.environ, "http_proxy": "http://127.0.0.1:9", "no_proxy": "example.org"}
    said = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, env=variables)
    assert said == b"example.org,localhost,127.0.0.1 [True, True, False]\n"

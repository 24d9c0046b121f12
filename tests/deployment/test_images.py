"""The images, as `make images` built them, run as somebody would who trusts nobody.

`make image-test`. IMAGE_TAG names others than those of the project's version.
"""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from conftest import LANE_ANSWERS, SLOW_SIZE, publish_slow
from containers import (
    ANYBODY,
    HARDENED,
    ROOT,
    Container,
    container,
    image,
    inspect,
    internal_network,
    once,
    until,
    version,
    volume,
)
from prometheus_client.parser import text_string_to_metric_families

from serving.pb import inference_pb2 as pb
from serving.pb import inference_pb2_grpc as pb_grpc

IMAGES = ("serving", "client", "training")
MODEL = "linear_0_9"
LARGEST = 400_000_000  # bytes
DRAIN_TIMEOUT = 30  # seconds: the server's default
EACH_SECOND = ("--health-interval=1s", "--health-start-period=1s", "--health-retries=2")
# Prints which of its arguments can be imported.
IMPORTABLE = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    print(name)
"""
VERSIONS = """
import importlib.metadata
for each in importlib.metadata.distributions():
    print(each.name, each.version)
"""
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2)"
NOBODY = "192.0.2.1"  # an address that is nobody's (RFC 5737)


def python(name: str, program: str, *arguments: str) -> str:
    """What a program prints in a fresh container, without a network."""
    options = (*HARDENED, "--network=none", "--entrypoint=python")
    result = once(name, *options, command=("-c", program, *arguments))
    assert result.returncode == 0, result.stderr
    return result.stdout


@dataclass(frozen=True, slots=True)
class Trained:
    """A volume with a model that the training image published."""

    volume: str
    holdout_accuracy: float  # what the model itself reached there, by its manifest


@pytest.fixture(scope="module")
def trained() -> Iterator[Trained]:
    """Ten handwritten digits, learnt without a network, and nothing but /models to write to."""
    with volume() as models:
        options = (*HARDENED, "--network=none", "--env=OMP_NUM_THREADS=1")
        mounted = f"--volume={models}:/models"
        command = ("--classes=0-9", "--models=linear", "--epochs=4", "--dataset=digits")
        result = once("training", *options, mounted, command=command, timeout=180)
        assert result.returncode == 0, result.stdout + result.stderr
        read = (*HARDENED, "--network=none", f"--user={ANYBODY}", f"{mounted}:ro")
        file = f"/models/{MODEL}/1/manifest.json"
        told = once("serving", *read, "--entrypoint=cat", command=(file,))
        yield Trained(models, json.loads(told.stdout)["variants"][0]["holdout_accuracy"])


@dataclass(frozen=True, slots=True)
class Stack:
    """A server in a network that nothing leads out of, and the volume that it serves."""

    server: Container
    network: str
    models: str


@pytest.fixture(scope="module")
def stack(trained: Trained) -> Iterator[Stack]:
    """Healthy, over a read-only volume, as a user that the image does not know."""
    with internal_network() as network:
        options = (f"--network={network}", f"--volume={trained.volume}:/models:ro", *EACH_SECOND)
        with container("serving", *HARDENED, f"--user={ANYBODY}", *options) as server:
            server.wait_until("healthy")
            yield Stack(server, network, trained.volume)


def test_every_image_says_what_it_is() -> None:
    for name in IMAGES:
        labels = inspect("image", image(name))["Config"]["Labels"]
        told = {key.removeprefix("org.opencontainers.image."): labels[key] for key in labels}
        assert told["title"] == f"digits-{name}"
        assert told["licenses"] == "Apache-2.0"
        assert told["version"] == version()
        assert re.fullmatch("[0-9a-f]{40}", told["revision"])
        assert told["base.name"].startswith("python:3.11")
        assert told["description"]


@pytest.mark.parametrize("file", ["serving", "torchserve", "training"])
def test_a_plain_build_has_the_version_of_the_project(file: str) -> None:
    text = (ROOT / f"deploy/docker/{file}.Dockerfile").read_text(encoding="utf-8")
    assert set(re.findall(r"^ARG VERSION=(.*)$", text, re.MULTILINE)) == {version()}


def test_no_image_runs_as_root_and_all_as_the_same_user() -> None:
    users = {inspect("image", image(name))["Config"]["User"] for name in IMAGES}
    assert users == {"10001:10001"}


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("serving", ("torch", "training", "onnx", "sklearn", "deploy")),
        ("client", ("torch", "training", "onnx", "onnxruntime", "prometheus_client")),
        ("training", ("serving", "grpc", "prometheus_client")),
    ],
)
def test_an_image_lacks_what_it_has_no_use_for(name: str, absent: tuple[str, ...]) -> None:
    assert python(name, IMPORTABLE, *absent, "model_repository").split() == ["model_repository"]


def test_the_serving_image_has_the_native_lane_and_not_what_compiled_it() -> None:
    program = "import serving.lane.native as lane; print(lane.__name__)"
    assert python("serving", program).strip() == "serving.lane.native"
    program = "import shutil; print([shutil.which(name) for name in ('c++', 'cmake', 'make')])"
    assert python("serving", program).strip() == "[None, None, None]"


def test_the_serving_image_is_small() -> None:
    assert inspect("image", image("serving"))["Size"] <= LARGEST


def test_the_training_image_publishes_as_the_user_that_the_others_have(trained: Trained) -> None:
    told = once(
        "serving",
        *(*HARDENED, f"--volume={trained.volume}:/models:ro", "--entrypoint=stat"),
        command=("--format=%u:%g", f"/models/{MODEL}/1/model.onnx"),
    )
    assert told.stdout == "10001:10001\n"


def test_training_that_is_told_to_stop_ends_by_itself() -> None:
    options = (*HARDENED, "--network=none", "--volume=/models", "--env=OMP_NUM_THREADS=1")
    command = ("--classes=0-9", "--models=resnet18", "--dataset=digits")
    with container("training", *options, command=command) as job:
        until(lambda: "train_loss" in job.logs, "training has begun")
        job.stop(grace=30)
        assert job.state["ExitCode"] == 130, job.logs  # 137: killed
        assert "interrupted" in job.logs


def test_another_container_has_real_digits_classified_with_no_way_out(
    stack: Stack, trained: Trained
) -> None:
    options = (*HARDENED, f"--network={stack.network}", f"--volume={stack.models}:/models:ro")
    command = ["deploy.load", f"--address={stack.server.name}:8001", f"--model={MODEL}"]
    command += [f"--holdout=/models/{MODEL}/1/holdout.npz", "--requests=46", "--retry=0"]
    result = once("client", *options, f"--user={ANYBODY}", command=command)
    assert result.returncode == 0, result.stdout + result.stderr
    tally = json.loads(result.stdout)
    assert tally["rows"] == 200  # all of them once, in requests of 1 to 8
    assert tally["right"] / tally["rows"] == pytest.approx(trained.holdout_accuracy)
    assert (tally["lost"], tally["feedback_refused"]) == (0, 0)


def test_the_network_that_it_serves_in_leads_nowhere_else(stack: Stack) -> None:
    options = (*HARDENED, f"--network={stack.network}", "--entrypoint=python")
    reached = once("client", *options, command=("-c", CONNECT, stack.server.name, "8001"))
    assert reached.returncode == 0, reached.stderr
    result = once("client", *options, command=("-c", CONNECT, NOBODY, "443"))
    assert result.returncode == 1
    assert re.search("TimeoutError|Network is unreachable", result.stderr)


def test_process_1_is_the_server(stack: Stack) -> None:
    command = stack.server.execute("cat", "/proc/1/cmdline").split("\0")
    assert command[:3] == ["python", "-m", "serving"]


def test_the_native_lane_answers_in_it(stack: Stack) -> None:
    assert LANE_ANSWERS in stack.server.logs


def test_its_log_has_no_warning_and_no_line_that_is_not_its_own(stack: Stack) -> None:
    lines = stack.server.logs.splitlines()
    assert "ready in" in "".join(lines)
    own = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO serving|  (model|linear_0_9) ")
    assert [line for line in lines if not own.match(line)] == []


def test_it_writes_nowhere_but_where_it_may(stack: Stack) -> None:
    """Its counters' files are in /dev/shm. In /tmp, its home, ONNX Runtime would keep the identity
    of the machine if it were not told not to report its use."""
    assert stack.server.execute("ls", "-A", "/tmp") == ""
    refused = "import pathlib; pathlib.Path('/opt/digits/x').touch()"
    with pytest.raises(subprocess.CalledProcessError, match="exit status 1"):
        stack.server.execute("python", "-c", refused)


def test_without_a_model_it_runs_and_is_unhealthy() -> None:
    options = (*HARDENED, f"--user={ANYBODY}", "--network=none", *EACH_SECOND)
    with container("serving", *options) as server:
        server.wait_until("unhealthy")
        assert server.state["Status"] == "running"
        assert server.state["Health"]["Log"][-1]["Output"] == "NOT_SERVING\n"
        live = server.execute("python", "-m", "serving", "healthcheck", "--service", "liveness")
        assert live == "SERVING\n"


def test_stopping_it_finishes_what_is_in_flight(tmp_path: Path) -> None:
    publish_slow(tmp_path)
    tmp_path.chmod(0o755)  # pytest made it private, and the server is another user
    ports = tuple(f"--publish=127.0.0.1::{port}" for port in (8000, 8001, 8002))
    options = (*HARDENED, *ports, f"--volume={tmp_path}:/models:ro", *EACH_SECOND)
    with container("serving", *options) as server:
        server.wait_until("healthy")
        with grpc.insecure_channel(server.port(8001)) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            answers = [stub.ModelInfer.future(slow_request(), timeout=60) for _ in range(16)]
            metrics = f"http://{server.port(8002)}/metrics"
            with urllib.request.urlopen(f"http://{server.port(8000)}/v2/health/ready") as ready:
                assert ready.status == 200
            until(lambda: in_flight(metrics) >= 8, "requests in flight")
            seconds = server.stop(grace=2 * DRAIN_TIMEOUT)
            assert [answer.code() for answer in answers] == [grpc.StatusCode.OK] * len(answers)
        assert server.state["ExitCode"] == 0
        assert server.logs.endswith("drained\n")
        assert seconds < DRAIN_TIMEOUT


def slow_request() -> pb.ModelInferRequest:
    """One that takes a fair part of a second."""
    row = np.ones((1, SLOW_SIZE), np.float32)
    request = pb.ModelInferRequest(model_name="slow", raw_input_contents=[row.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=row.shape)
    return request


def in_flight(metrics: str) -> float:
    """Requests that the server has and has not answered, by its own metrics."""
    with urllib.request.urlopen(metrics, timeout=10) as reply:
        families = text_string_to_metric_families(reply.read().decode())
        samples = [sample for family in families for sample in family.samples]
    return sum(each.value for each in samples if each.name == "inference_in_flight_requests")


def test_a_wrong_option_is_refused_in_one_line_with_status_2() -> None:
    result = once("serving", *HARDENED, command=("--max-batch-size=none",))
    assert result.returncode == 2
    lines = [line for line in result.stderr.splitlines() if not line.startswith("usage: ")]
    assert len(lines) == 1
    assert "--max-batch-size" in lines[0]


@pytest.mark.parametrize("name", IMAGES)
def test_the_bill_of_materials_lists_what_the_image_has(name: str) -> None:
    path = ROOT / "build" / "sbom" / f"{name}.cdx.json"
    bill = json.loads(path.read_text(encoding="utf-8"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    digest = "sha256:" + bill["metadata"]["component"]["hashes"][0]["content"]
    assert digest == inspect("image", image(name))["Id"], "make sbom was not run for this image"
    listed = {
        each["name"]: each["version"]
        for each in bill["components"]
        if each["name"] == "digits" or each.get("purl", "").startswith("pkg:pypi/")
    }
    installed = dict(line.split() for line in python(name, VERSIONS).splitlines())
    assert listed == installed
    assert {"numpy", "digits"} <= listed.keys()
    assert ("onnxruntime" in listed) == (name != "client")
    assert ("torch" in listed) == (name == "training")
    debian = [each for each in bill["components"] if each.get("purl", "").startswith("pkg:deb/")]
    assert "libc6" in {each["name"] for each in debian}

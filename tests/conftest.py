"""Real servers over tiny real models: a linear classifier of handwritten digits, and an echo."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grpc
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sklearn.datasets import load_digits

from model_repository import (
    CONFIDENCE_EDGES,
    HOLDOUT,
    INK_EDGES,
    ONNX_PLATFORM,
    Distribution,
    Draft,
    Quality,
    TensorSpec,
    Variant,
    publish,
    staging,
)
from serving.batcher import DynamicBatcher
from serving.config import ServerConfig
from serving.device import why_no_cuda
from serving.native_batcher import NativeBatcher
from serving.pb import inference_pb2 as pb
from serving.pb import inference_pb2_grpc as pb_grpc
from serving.server import Server
from training.data import load_dataset
from training.dataset import Dataset

ROOT = Path(__file__).parent.parent
# Seconds for what takes a moment: only what is broken takes them all, however busy the machine is.
PATIENCE = 60.0
# Seconds until a process that a test has started is killed, all its steps having gone wrong.
LIFETIME = 5 * PATIENCE
# Which transport all servers of the tests take: the whole suite runs over either. The environment
# says the same to those that are processes of their own.
TRANSPORT = os.environ.setdefault("DIGITS_TRANSPORT", "grpcio")
THREES_AND_SEVENS = ("3", "7")
IMAGES = TensorSpec("images", "UINT8", (-1, 28, 28))
CLASSIFIER_OUTPUTS = (
    TensorSpec("probabilities", "FP32", (-1, 2)),
    TensorSpec("labels", "INT64", (-1,)),
)
SLOW_SIZE = 1024
ECHO_TYPES = {
    "BOOL": TensorProto.BOOL,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


# The same examples on each run, whatever time they take; --hypothesis-profile=default draws others.
settings.register_profile(
    "steady",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("steady")

# Those of one contract: each test of it is for all.
BATCHERS = (
    pytest.param(DynamicBatcher, id="python"),
    pytest.param(NativeBatcher, id="native", marks=pytest.mark.lane),
)

# The same of a server's, for tests that are about what both promise.
TRANSPORTS = ("grpcio", pytest.param("native", marks=pytest.mark.lane))
# What a server logs that took the lane, which --transport auto does only where it can.
LANE_ANSWERS = "the native lane answers ModelInfer, and grpcio all other calls"

NO_CUDA = pytest.StashKey[str | None]()
GPU_TESTS_LEFT_OUT = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Find out once whether CUDA runs models here."""
    config.stash[NO_CUDA] = why_no_cuda()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, and so count and name, what needs MNIST when MNIST_DIR does not say where it is, and
    what needs Prometheus where it is not installed, or the native lane where it is not built.

    What needs a GPU is left out where there is none, and said in the summary: most machines have
    none, and CI takes anything skipped for a fault.
    """
    if not os.environ.get("MNIST_DIR"):
        _skip(items, "mnist", "MNIST_DIR is not set")
    if not (shutil.which("prometheus") and shutil.which("promtool")):
        _skip(items, "prometheus", "prometheus and promtool are not on the PATH")
    if not importlib.util.find_spec("serving.lane.native"):
        _skip(items, "lane", "the native lane is not built (make lane)")
    if config.stash[NO_CUDA]:
        gpu = [item for item in items if item.get_closest_marker("gpu")]
        config.stash[GPU_TESTS_LEFT_OUT] = len(gpu)
        items[:] = [item for item in items if item not in gpu]


def _skip(items: list[pytest.Item], marker: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(marker):
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist tells the process that writes the summary what it left out."""
    if hasattr(session.config, "workeroutput"):
        left_out = session.config.stash.get(GPU_TESTS_LEFT_OUT, 0)
        session.config.workeroutput["gpu_tests_left_out"] = left_out


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Hear of it; every worker leaves out the same, unless it died."""
    if left_out := getattr(node, "workeroutput", {}).get("gpu_tests_left_out", 0):
        node.config.stash[GPU_TESTS_LEFT_OUT] = left_out


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say how many tests need a GPU and did not run."""
    if left_out := config.stash.get(GPU_TESTS_LEFT_OUT, 0):
        terminalreporter.write_line(
            f"gpu: {left_out} tests did not run, as {config.stash[NO_CUDA]}"
        )


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Here and in what tests start: threads that wait for each other's turn made small steps thirty
    times slower on a machine that was busy with something else."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        yield


def until(true: Callable[[], bool]) -> None:
    """Ask again and again, until it is so."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end


def socket_directories(pid: int) -> set[Path]:
    """Where grpcio listens behind the lane, in a process."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    paths = [Path(line.split()[-1]) for line in lines if f"/grpcio-{pid}-" in line]
    return {path.parent for path in paths}


def once_within(seconds: float, measure: Callable[[], float]) -> bool:
    """Whether one of a few tries takes less: a busy machine makes some slow, a fault all."""
    return any(measure() < seconds for _ in range(5))


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The directory of the MNIST files; only for tests marked `mnist`."""
    return Path(os.environ["MNIST_DIR"])


@pytest.fixture(scope="session")
def digits_3_7() -> Dataset:
    """The threes and sevens bundled with scikit-learn, split as training splits them."""
    return load_dataset("digits", THREES_AND_SEVENS)


@pytest.fixture(scope="session")
def mnist_3_7(mnist_dir: Path) -> Dataset:
    """MNIST's threes and sevens; only for tests marked `mnist`."""
    return load_dataset("mnist", THREES_AND_SEVENS, mnist_dir)


@dataclasses.dataclass(frozen=True)
class Digits:
    """Real handwritten threes and sevens: uint8 images (N, 28, 28) and their class, 0 or 1."""

    images: NDArray[np.uint8]
    classes: NDArray[np.int64]


@pytest.fixture(scope="session")
def digits() -> Digits:
    """The threes and sevens of scikit-learn's handwritten digits, enlarged to 28x28."""
    bunch = load_digits()
    wanted = np.isin(bunch.target, (3, 7))
    small = (bunch.images[wanted] * 255 / 16).astype(np.uint8)
    images = [np.asarray(Image.fromarray(image).resize((28, 28))) for image in small]
    return Digits(np.stack(images), (bunch.target[wanted] == 7).astype(np.int64))


def save_classifier(path: Path, digits: Digits, unseen: int = 0) -> None:
    """A softmax over the distances to each class's mean digit, which is linear in the pixels; with
    so many more classes, which nothing is."""
    flat = digits.images.reshape(len(digits.images), -1) / 255.0
    means = np.stack([flat[digits.classes == c].mean(axis=0) for c in (0, 1)])
    weights = (means.T * 2).astype(np.float32)  # (784, 2)
    bias = -(means**2).sum(axis=1).astype(np.float32)  # (2,)
    weights = np.pad(weights, ((0, 0), (0, unseen)))
    bias = np.pad(bias, (0, unseen), constant_values=-1e4)
    constants = {"weights": weights, "bias": bias, "scale": np.float32(255)}
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "scale"], ["ink"]),
        helper.make_node("Flatten", ["ink"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights", "bias"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"]),
        helper.make_node("ArgMax", ["scores"], ["labels"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 28, 28])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2 + unseen]),
            helper.make_tensor_value_info("labels", TensorProto.INT64, ["N"]),
        ],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    save(graph, path)


def save_echo(
    path: Path, shape: list[str | int], types: Mapping[str, int] = MappingProxyType(ECHO_TYPES)
) -> None:
    """Gives every input back, one of each datatype: in_FP32 as out_FP32."""
    nodes = [helper.make_node("Identity", [f"in_{t}"], [f"out_{t}"]) for t in types]
    inputs = [helper.make_tensor_value_info(f"in_{t}", e, shape) for t, e in types.items()]
    outputs = [helper.make_tensor_value_info(f"out_{t}", e, shape) for t, e in types.items()]
    save(helper.make_graph(nodes, "echo", inputs, outputs), path)


def save(graph: onnx.GraphProto, path: Path) -> None:
    """Write a checked model that ONNX Runtime of any supported age reads."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def save_slow(path: Path, shared: bool, size: int = SLOW_SIZE) -> None:
    """Squares a large matrix of each row again and again, which takes a fair part of a second."""
    apart, together = ("Unsqueeze", "Squeeze") if shared else ("Identity", "Identity")
    middle = ["middle"] if shared else []
    nodes = [
        helper.make_node(apart, ["x", *middle], ["rows"]),
        # The row is the diagonal, so that no optimiser can fold the products away.
        helper.make_node("Mul", ["matrix", "rows"], ["m0"]),
        *(helper.make_node("MatMul", [f"m{i}", f"m{i}"], [f"m{i + 1}"]) for i in range(4)),
        helper.make_node("MatMul", ["rows", "m4"], ["products"]),
        helper.make_node(together, ["products", *middle], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", size])],
        [
            numpy_helper.from_array(np.eye(size, dtype=np.float32), "matrix"),
            numpy_helper.from_array(np.array([1]), "middle"),
        ],
    )
    save(graph, path)


def publish_slow(repository: Path, shared: bool = True, size: int = SLOW_SIZE) -> Path:
    """Publish a model that keeps an instance busy; `shared` says whether requests share a run."""
    x, y = (TensorSpec(name, "FP32", (-1, size)) for name in ("x", "y"))
    return publish_model(repository, "slow", lambda path: save_slow(path, shared, size), (x,), (y,))


def slow_request(name: str = "", value: float = 0.0, size: int = SLOW_SIZE) -> pb.ModelInferRequest:
    """One row of that value for `slow`, which answers its 17th power."""
    raw = np.full(size, value, np.float32).tobytes()
    request = pb.ModelInferRequest(id=name, model_name="slow", raw_input_contents=[raw])
    request.inputs.add(name="x", datatype="FP32", shape=[1, size])
    return request


def publish_model(
    repository: Path,
    name: str,
    write: Callable[[Path], object],
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    labels: tuple[str, ...] = (),
) -> Path:
    """Publish the file that `write` makes as the next version of a model."""
    with staging(repository) as directory:
        write(directory / "model.onnx")
        variant = Variant("model.onnx", ONNX_PLATFORM, "fp32", "", accuracy=None)
        return publish(directory, Draft(name, inputs, outputs, (variant,), {"labels": labels}))


def publish_proven(
    repository: Path,
    digits: Digits,
    *variants: Variant,
    holdout: Mapping[str, NDArray[np.generic]] | None = None,
) -> Path:
    """Publish the linear classifier as each of the variants' files, with a holdout.npz."""
    with staging(repository) as directory:
        for variant in variants:
            save_classifier(directory / variant.file, digits)
        if holdout is not None:
            np.savez(directory / HOLDOUT, **holdout)  # type: ignore[arg-type]
        draft = Draft("proven", (IMAGES,), CLASSIFIER_OUTPUTS, variants, {"labels": ("3", "7")})
        return publish(directory, draft)


def publish_classifier(repository: Path, digits: Digits, name: str = "classifier") -> Path:
    """Publish the linear classifier of threes and sevens."""
    return publish_model(
        repository,
        name,
        lambda path: save_classifier(path, digits),
        (IMAGES,),
        CLASSIFIER_OUTPUTS,
        THREES_AND_SEVENS,
    )


def publish_calibrated(
    repository: Path, digits: Digits, reference: Digits, name: str = "calibrated"
) -> Path:
    """Publish the linear classifier of `digits`, with what it says of the `reference` images."""
    with staging(repository) as directory:
        save_classifier(directory / "model.onnx", digits)
        quality = quality_of(directory / "model.onnx", reference)
        variant = Variant("model.onnx", ONNX_PLATFORM, "fp32", "")
        facts: dict[str, object] = {"labels": THREES_AND_SEVENS, "quality": quality}
        draft = Draft(name, (IMAGES,), CLASSIFIER_OUTPUTS, (variant,), facts)
        return publish(directory, draft)


def quality_of(path: Path, reference: Digits) -> Quality:
    """What a classifier says of images: its temperature makes mean confidence its accuracy there,
    computed from the definitions in double precision, and the bins counted one by one."""
    session = onnxruntime.InferenceSession(path)
    probabilities, labels = session.run(None, {"images": reference.images})
    logits = np.log(probabilities.astype(np.float64))
    accuracy = float((labels == reference.classes).mean())
    low, high = 0.01, 100.0
    for _ in range(60):
        temperature = (low * high) ** 0.5
        powers = np.exp(logits / temperature)
        confidence = (powers / powers.sum(axis=1, keepdims=True)).max(axis=1)
        low, high = (temperature, high) if confidence.mean() > accuracy else (low, temperature)
    return Quality(
        temperature=temperature,
        expected_calibration_error=0.0,
        images=len(labels),
        ink=share_by_bin([float(image.mean()) / 255 for image in reference.images], INK_EDGES),
        confidence=share_by_bin(confidence.tolist(), CONFIDENCE_EDGES),
        labels=tuple(float((labels == index).mean()) for index in (0, 1)),
    )


def share_by_bin(values: Sequence[float], edges: tuple[float, ...]) -> Distribution:
    """Each value lies in the first bin whose upper bound it does not exceed."""
    bins = [next((i for i, e in enumerate(edges) if v <= e), len(edges)) for v in values]
    counts = [bins.count(index) for index in range(len(edges) + 1)]
    return Distribution(edges, tuple(count / len(values) for count in counts))


def publish_echo(
    repository: Path,
    name: str,
    shape: tuple[int, ...],
    types: Mapping[str, int] = MappingProxyType(ECHO_TYPES),
) -> Path:
    """Publish the echo of every datatype, or of some; -1 in the shape is variable."""
    names: list[str | int] = [f"N{i}" if size == -1 else size for i, size in enumerate(shape)]
    return publish_model(
        repository,
        name,
        lambda path: save_echo(path, names, types),
        tuple(TensorSpec(f"in_{t}", t, shape) for t in types),
        tuple(TensorSpec(f"out_{t}", t, shape) for t in types),
    )


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory, digits: Digits) -> Path:
    """Models `classifier` (version 1), `echo` (batchable) and `echo_fixed` (shape [2, 3])."""
    path = tmp_path_factory.mktemp("models")
    publish_classifier(path, digits)
    publish_echo(path, "echo", (-1, 3))
    publish_echo(path, "echo_fixed", (2, 3))
    return path


def threads_named(name: str) -> set[str]:
    """Threads whose names begin so: Python's, and those that only the system knows."""
    found = {thread.name for thread in threading.enumerate()}
    for thread in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            found.add((thread / "comm").read_text().strip())
    return {each for each in found if each.startswith(name)}


def wait_for_threads(name: str, count: int) -> None:
    """Until so many have that name: the system forgets a thread a moment after it has ended."""
    end = time.monotonic() + PATIENCE
    while len(threads_named(name)) != count:
        assert time.monotonic() < end, threads_named(name)
        threading.Event().wait(0.001)


@dataclasses.dataclass(frozen=True)
class Running:
    """A server that has loaded, and a channel to it."""

    server: Server
    address: str
    channel: grpc.Channel
    stub: pb_grpc.GRPCInferenceServiceStub
    metrics_url: str
    http_url: str  # without a slash at its end; empty where the server does not listen for HTTP


@contextmanager
def running_server(repository: Path, **options: object) -> Iterator[Running]:
    """Serve a repository in this process, on free ports; options are ServerConfig's."""
    defaults = ServerConfig(
        model_repository=repository,
        grpc_port=0,
        metrics_port=0,
        http_port=0,
        allow_http=False,  # most tests ask by gRPC
        intra_op_threads=1,
        transport=TRANSPORT,
    )
    server = Server(dataclasses.replace(defaults, **options))  # type: ignore[arg-type]
    server.start()
    try:
        server.wait_until_loaded()
        address = f"localhost:{server.grpc_port}"
        url = f"http://localhost:{server.metrics_port}/metrics"
        with grpc.insecure_channel(address) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            http_url = f"http://localhost:{server.http_port}" if server.http_port else ""
            yield Running(server, address, channel, stub, url, http_url)
    finally:
        server.stop()


@pytest.fixture(scope="session", params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    """Each transport in turn, for what is about the promises of both: ServerConfig's option."""
    found: str = request.param
    return found


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[Running]]:
    """`with serve(repository, max_batch_size=8) as running:` for a server of one's own."""
    return running_server


@pytest.fixture(scope="session")
def running(repository: Path) -> Iterator[Running]:
    """One server over `repository`, shared by the tests that do not mind company."""
    with running_server(repository) as server:
        yield server


@dataclasses.dataclass
class Process:
    """`python -m serving` in a process of its own; `log` grows while it runs."""

    popen: subprocess.Popen[str]
    log: list[str]
    address: str = ""

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read the log up to a line that matches."""
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.log.append(line)
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"{pattern!r} never came:\n{''.join(self.log)}")

    def finish(self) -> int:
        """Read the rest of the log; the exit status."""
        assert self.popen.stderr is not None
        self.log.extend(self.popen.stderr)
        return self.popen.wait(timeout=PATIENCE)


@contextmanager
def server_process(
    *arguments: str, environ: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Process]:
    """Run the server's command line with free ports, and with more in its environment; killed after
    LIFETIME or when left."""
    command = [sys.executable, "-m", "serving", "--grpc-port", "0", "--metrics-port", "0"]
    command += ["--http-port", "0"]
    popen = subprocess.Popen(
        [*command, *arguments],
        cwd=ROOT,
        env={**os.environ, **environ},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    watchdog = threading.Timer(LIFETIME, popen.kill)
    watchdog.start()
    try:
        yield Process(popen, [])
    finally:
        watchdog.cancel()
        popen.kill()
        popen.wait()
        assert popen.stderr is not None
        popen.stderr.close()


def save_times(path: Path, factor: int) -> None:
    """y = factor * x, so that an answer tells which version gave it."""
    node = helper.make_node("Mul", ["x", "factor"], ["y"])
    shape: list[str | int] = ["N", 1]
    graph = helper.make_graph(
        [node],
        "times",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.array([factor], np.float32), "factor")],
    )
    save(graph, path)


def publish_times(repository: Path, name: str = "times", factor: int | None = None) -> Path:
    """Publish the next version of a model that multiplies by its version number."""
    model = repository / name
    taken = [int(p.name.rpartition("-")[2]) for p in model.glob("*") if p.name[-1].isdigit()]
    number = max(taken, default=0) + 1
    x, y = (TensorSpec(each, "FP32", (-1, 1)) for each in ("x", "y"))
    return publish_model(
        repository, name, lambda path: save_times(path, factor or number), (x,), (y,)
    )


def times_request(*values: float, name: str = "times", version: str = "") -> pb.ModelInferRequest:
    """A row for each of the values."""
    raw = np.array(values, np.float32).tobytes()
    request = pb.ModelInferRequest(model_name=name, model_version=version, raw_input_contents=[raw])
    request.inputs.add(name="x", datatype="FP32", shape=[len(values), 1])
    return request


@dataclasses.dataclass
class Load:
    """What clients got that ask without pause; `wait_for` a version's first answer."""

    versions: set[str] = dataclasses.field(default_factory=set)
    answers: int = 0
    faults: list[str] = dataclasses.field(default_factory=list)
    changed: threading.Condition = dataclasses.field(default_factory=threading.Condition)
    over: threading.Event = dataclasses.field(default_factory=threading.Event)

    def wait_for(self, version: str, timeout: float = PATIENCE) -> bool:
        """Whether an answer of that version came, or comes in time."""
        with self.changed:
            return self.changed.wait_for(lambda: version in self.versions, timeout)

    def wait_for_answers(self, more: int, timeout: float = PATIENCE) -> bool:
        """Whether so many more answers come in time."""
        with self.changed:
            target = self.answers + more
            return self.changed.wait_for(lambda: self.answers >= target, timeout)

    def ask(self, address: str, seed: int) -> None:
        """Ask `times` for the product of random numbers until it is over."""
        random = np.random.default_rng(seed)
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(address, options) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            while not self.over.is_set():
                values = random.integers(1, 1000, random.integers(1, 5)).astype(np.float32)
                try:
                    answer = stub.ModelInfer(times_request(*values), timeout=PATIENCE)
                except grpc.RpcError as error:
                    self.add("", str(error))
                    continue
                products = np.frombuffer(answer.raw_output_contents[0], np.float32)
                right = (values * np.float32(answer.model_version)).tolist()
                fault = "" if products.tolist() == right else f"{values} gave {products}"
                self.add(answer.model_version, fault)

    def add(self, version: str, fault: str) -> None:
        """An answer of that version, or a fault."""
        with self.changed:
            self.answers += 1
            self.versions.add(version)
            self.faults += [fault] if fault else []
            self.changed.notify_all()


def crowd(running: Running, request: pb.ModelInferRequest) -> list[Any]:
    """Calls of which some were refused for want of room: twenty at a time, again where the server
    was quicker than we."""
    calls: list[Any] = []

    def one_is_refused() -> bool:
        more = [running.stub.ModelInfer.future(request, timeout=LIFETIME) for _ in range(20)]
        calls.extend(more)
        return grpc.StatusCode.RESOURCE_EXHAUSTED in {call.code() for call in more}

    until(one_is_refused)
    return calls


@contextmanager
def under_load(address: str, clients: int = 3) -> Iterator[Load]:
    """Clients, each with a connection of its own, that ask `times` until the block is left."""
    load = Load()
    threads = [threading.Thread(target=load.ask, args=(address, n)) for n in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.over.set()
        for thread in threads:
            thread.join()

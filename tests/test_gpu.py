"""What only a CUDA device can show. Left out, and said so, where there is none."""

from __future__ import annotations

import dataclasses
import threading
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from conftest import (
    BATCHERS,
    CLASSIFIER_OUTPUTS,
    IMAGES,
    PATIENCE,
    Digits,
    publish_slow,
    running_server,
    save_classifier,
)
from numpy.typing import NDArray

from model_repository import (
    ONNX_PLATFORM,
    Draft,
    Manifest,
    Variant,
    publish,
    read_manifest,
    staging,
)
from serving.batch import Answer, Batcher, Outcome, Request
from serving.binding import pinned
from serving.client import Client
from serving.config import ServerConfig
from serving.device import CPU, CUDA, TENSORRT, Runtime, runtime_for, why_no_tensorrt
from serving.errors import ModelLoadError, StartupError
from serving.model import load
from serving.session import Tensors, open_session
from training.quantise import halve

pytestmark = pytest.mark.gpu

BUCKETS = (1, 4, 16)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory, digits: Digits) -> Path:
    """The linear classifier in fp32 and fp16."""
    with staging(tmp_path_factory.mktemp("models")) as directory:
        save_classifier(directory / "model.onnx", digits)
        halve(directory / "model.onnx", directory / "model.fp16.onnx")
        variants = tuple(
            Variant(file, ONNX_PLATFORM, precision, "")
            for file, precision in (("model.onnx", "fp32"), ("model.fp16.onnx", "fp16"))
        )
        return publish(directory, Draft("classifier", (IMAGES,), CLASSIFIER_OUTPUTS, variants))


@pytest.fixture
def manifest(version: Path) -> Manifest:
    return read_manifest(version)


def runtime(**changes: object) -> Runtime:
    """A GPU's, by CUDA, in fp32, with those options of ServerConfig."""
    values: dict[str, object] = {"device": "gpu", "precision": "fp32", "execution_provider": "cuda"}
    return runtime_for(ServerConfig(**{**values, **changes}))  # type: ignore[arg-type]


def options_of(version: Path, manifest: Manifest, gpu: Runtime) -> dict[str, str]:
    """The provider's options that ONNX Runtime says are in force."""
    session = open_session(version, manifest, manifest.variants[0], gpu)
    options: dict[str, str] = session.get_provider_options()[CUDA]
    return options


def close(actual: Tensors, expected: Tensors, tolerance: float = 1e-5) -> None:
    assert np.array_equal(actual["labels"], expected["labels"])
    assert farthest(actual, expected) <= tolerance


def farthest(actual: Tensors, expected: Tensors) -> float:
    """The largest difference of a probability."""
    one, other = (np.asarray(each["probabilities"], np.float64) for each in (actual, expected))
    return float(np.abs(one - other).max())


def plain(version: Path, manifest: Manifest, images: NDArray[np.uint8]) -> Tensors:
    """What the CPU answers."""
    return load(version, manifest, Runtime("cpu", "fp32", 1)).run({"images": images})


def test_cuda_is_what_runs_the_model(version: Path, manifest: Manifest) -> None:
    model = load(version, manifest, runtime())
    assert (model.device, model.provider) == ("gpu", CUDA)
    assert runtime_for(ServerConfig()).device == "gpu"


def test_the_options_are_in_force(version: Path, manifest: Manifest) -> None:
    options = options_of(version, manifest, runtime(gpu_memory_limit=2**30))
    assert options["gpu_mem_limit"] == str(2**30)
    assert options["arena_extend_strategy"] == "kSameAsRequested"
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert (options["use_tf32"], options["enable_cuda_graph"]) == ("0", "0")
    other = runtime(precision="tf32", gpu_arena="next_power_of_two")
    options = options_of(version, manifest, other)
    assert (options["use_tf32"], options["arena_extend_strategy"]) == ("1", "kNextPowerOfTwo")


def test_pinned_memory_is_memory(digits: Digits) -> None:
    array = pinned()((5, 28, 28), np.dtype(np.uint8))
    np.copyto(array, digits.images[:5])
    view = array[1:3]
    del array
    assert np.array_equal(view, digits.images[1:3])


@pytest.mark.parametrize("make", BATCHERS)
def test_rows_that_a_batcher_wrote_into_pinned_buffers_are_read_from_there(
    version: Path, manifest: Manifest, digits: Digits, make: Callable[..., Batcher]
) -> None:
    model = load(version, manifest, runtime(max_batch_size=32))
    read: list[int] = []

    def run(inputs: Tensors) -> Tensors:
        read.append(inputs["images"].ctypes.data)
        return model.run(inputs)

    batcher = make(run, max_batch_size=32, buffers=model.buffers)
    for start, rows in ((0, 32), (32, 1), (40, 7), (3, 32)):
        images = digits.images[start : start + rows]
        outcome: Future[Outcome] = Future()
        batcher.submit(Request({"images": images}, outcome.set_result))
        answer = outcome.result(PATIENCE)
        assert isinstance(answer, Answer)
        close(answer.outputs, plain(version, manifest, images))
    assert batcher.close(PATIENCE)
    assert read == [model.buffers[0]["images"].ctypes.data] * 4


def test_bound_buffers_answer_as_the_cpu_does_for_any_number_of_rows(
    version: Path, manifest: Manifest, digits: Digits
) -> None:
    model = load(version, manifest, runtime(max_batch_size=32))
    for start, rows in ((0, 32), (32, 1), (40, 7), (3, 32)):
        images = digits.images[start : start + rows]
        close(model.run({"images": images}), plain(version, manifest, images))


def test_instances_run_at_the_same_time_and_keep_apart(
    version: Path, manifest: Manifest, digits: Digits
) -> None:
    model = load(version, manifest, runtime(instance_count=2, max_batch_size=8))
    expected = plain(version, manifest, digits.images[:64])
    wrong: list[int] = []

    def client(number: int) -> None:
        for turn in range(50):
            at = (number * 11 + turn) % 56
            answer = model.run({"images": digits.images[at : at + 1 + number]})
            if not np.array_equal(answer["labels"], expected["labels"][at : at + 1 + number]):
                wrong.append(number)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_each_bucket_has_a_cuda_graph_that_replays_on_new_images_from_any_thread(
    version: Path, manifest: Manifest, digits: Digits
) -> None:
    graphs = runtime(cuda_graphs=True, batch_buckets=BUCKETS, max_batch_size=16)
    assert options_of(version, manifest, graphs)["enable_cuda_graph"] == "1"
    model = load(version, manifest, graphs)  # warming up captured the graphs
    answers: dict[tuple[int, int], Tensors] = {}

    def client(start: int) -> None:
        for rows in (*BUCKETS, *BUCKETS[::-1]):
            answers[start, rows] = model.run({"images": digits.images[start : start + rows]})

    for start in (0, 20, 40):
        thread = threading.Thread(target=client, args=(start,))
        thread.start()
        thread.join()
    for (start, rows), answer in answers.items():
        close(answer, plain(version, manifest, digits.images[start : start + rows]))
    with pytest.raises(ValueError, match="3 rows"):
        model.run({"images": digits.images[:3]})


def test_fp16_answers_nearly_as_fp32(version: Path, manifest: Manifest, digits: Digits) -> None:
    model = load(version, manifest, runtime(precision="fp16"))
    assert model.variant.precision == "fp16"
    images = digits.images[:32]
    half, full = model.run({"images": images}), plain(version, manifest, images)
    assert half["probabilities"].dtype == np.float32
    assert (half["labels"] == full["labels"]).mean() >= 0.9
    assert farthest(half, full) <= 0.1


def test_a_model_beyond_the_memory_limit_is_refused(tmp_path: Path) -> None:
    directory = publish_slow(tmp_path)  # its matrix is 4 MiB
    limited = runtime(gpu_memory_limit=2**20, max_batch_size=1)
    with pytest.raises(ModelLoadError) as caught:
        load(directory, read_manifest(directory), limited)
    assert caught.value.reason == "session"


def test_tensorrt_runs_models_where_it_is_installed_and_is_refused_elsewhere(
    version: Path, manifest: Manifest
) -> None:
    if why_no_tensorrt():
        with pytest.raises(StartupError, match="--execution-provider tensorrt: "):
            runtime(execution_provider="tensorrt")
    else:
        tensorrt = runtime(execution_provider="tensorrt")
        assert load(version, manifest, tensorrt).provider == TENSORRT
    with pytest.raises(StartupError, match="--cuda-graphs needs --execution-provider cuda"):
        runtime(execution_provider="tensorrt", cuda_graphs=True, batch_buckets=(1,))


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_server_answers_from_the_gpu(
    version: Path, manifest: Manifest, digits: Digits, cuda_graphs: bool
) -> None:
    options: dict[str, object] = {"device": "gpu", "execution_provider": "cuda"}
    options |= {"precision": "fp32", "max_batch_size": 16}
    if cuda_graphs:
        options |= {"cuda_graphs": True, "batch_buckets": BUCKETS}
    repository = version.parent.parent
    with running_server(repository, **options) as running, Client(running.address) as client:
        answer = client.classify(digits.images[:16], "classifier", rows_per_request=16)
    expected = plain(version, manifest, digits.images[:16])["labels"]
    assert [int(label) for label in answer.labels] == expected.tolist()


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_server_writes_rows_into_the_pinned_buffers_that_the_gpu_reads(
    version: Path, manifest: Manifest, digits: Digits, transport: str, cuda_graphs: bool
) -> None:
    options: dict[str, object] = {"device": "gpu", "execution_provider": "cuda"}
    options |= {"precision": "fp32", "max_batch_size": 16, "transport": transport}
    if cuda_graphs:
        options |= {"cuda_graphs": True, "batch_buckets": BUCKETS}
    images = digits.images[20:31]
    repository = version.parent.parent
    with running_server(repository, **options) as running, Client(running.address) as client:
        (buffers,) = running.server.inference.registry.get("classifier").model.buffers
        answer = client.classify(images, "classifier", rows_per_request=len(images))
        assert np.array_equal(buffers["images"][: len(images)], images)
        blank = buffers["images"][len(images) : 16 if cuda_graphs else len(images)]
        assert not blank.any()
    expected = plain(version, manifest, images)["labels"]
    assert [int(label) for label in answer.labels] == expected.tolist()


def test_the_cpu_beside_it_is_still_the_cpu(version: Path, manifest: Manifest) -> None:
    cpu = dataclasses.replace(runtime_for(ServerConfig(device="cpu")), precision="fp32")
    assert load(version, manifest, cpu).provider == CPU


def test_a_server_on_a_gpu_tells_how_it_is_used(
    version: Path, manifest: Manifest, digits: Digits
) -> None:
    """With NVML's library, which the `gpu` extra brings."""
    options = {"device": "gpu", "execution_provider": "cuda", "precision": "fp32"}
    repository = version.parent.parent
    with running_server(repository, **options, triton_metrics=True) as running:
        with Client(running.address) as client:
            client.classify(digits.images[:16], "classifier", rows_per_request=16)
        text = urllib.request.urlopen(running.metrics_url, timeout=PATIENCE).read().decode()
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if "gpu_uuid=" in line)
    found: dict[str, list[float]] = {}
    for series, value in lines.items():
        found.setdefault(series.partition("{")[0], []).append(float(value))
    used, total = (max(found[f"inference_gpu_memory_{each}_bytes"]) for each in ("used", "total"))
    assert 50e6 < used <= total
    assert all(0 <= share <= 1 for share in found["inference_gpu_utilization_ratio"])
    assert 1 < max(found["inference_gpu_power_watts"]) < 2000
    assert max(found["inference_gpu_energy_joules_total"]) > 0
    assert found["nv_gpu_memory_total_bytes"] == found["inference_gpu_memory_total_bytes"]

"""Buffers of fixed address answer as plain runs do. On the CPU; test_gpu.py does it on a GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from conftest import BATCHERS, PATIENCE, Digits
from numpy.typing import NDArray

from model_repository import ONNX_PLATFORM, Manifest, read_manifest
from serving.batch import Answer, Batcher, Outcome, Request
from serving.binding import GraphBound, HostBound, bindable, input_buffers
from serving.device import Runtime
from serving.model import load
from serving.session import Tensors, open_session

ROWS = ((0, 8), (8, 1), (9, 4), (13, 2), (15, 1), (16, 7))  # of requests: where, how many
CPU = Runtime("cpu", "fp32", 1, max_batch_size=8)


def allocate(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    """Ordinary memory, full of what no model answers."""
    return np.full(shape, 99, dtype)


@pytest.fixture
def version(repository: Path) -> Path:
    return repository / "classifier" / "1"


@pytest.fixture
def manifest(version: Path) -> Manifest:
    return read_manifest(version)


def host_bound(version: Path, manifest: Manifest, instances: int = 1) -> HostBound:
    variant = manifest.variant(ONNX_PLATFORM, "fp32")
    assert variant is not None
    session = open_session(version, manifest, variant, CPU)
    return HostBound(session, manifest, 8, instances, allocate)


def same(actual: Tensors, expected: Tensors) -> bool:
    return actual.keys() == expected.keys() and all(
        np.array_equal(actual[name], expected[name]) for name in expected
    )


def test_any_number_of_rows_up_to_the_buffers_answers_as_a_plain_run(
    version: Path, manifest: Manifest, digits: Digits
) -> None:
    plain, bound = load(version, manifest, CPU), host_bound(version, manifest)
    parts: list[Tensors] = [
        {"images": digits.images[start : start + rows]} for start, rows in ((0, 8), (8, 1))
    ]
    parts += [{"images": digits.images[9:14][::-1]}]
    answers = [bound.run(part) for part in parts]
    for answer, part in zip(answers, parts, strict=True):  # later runs left earlier answers alone
        assert same(answer, plain.run(part))


def test_an_input_of_another_type_is_not_converted(version: Path, manifest: Manifest) -> None:
    with pytest.raises(RuntimeError, match="Unexpected input data type"):
        host_bound(version, manifest).run({"images": np.zeros((2, 28, 28), np.float32)})


def test_threads_do_not_see_each_others_rows(
    version: Path, manifest: Manifest, digits: Digits
) -> None:
    plain, bound = load(version, manifest, CPU), host_bound(version, manifest, instances=2)
    wrong: list[int] = []

    def client(number: int) -> None:
        for turn in range(30):
            part: Tensors = {"images": digits.images[number + turn : number + turn + 1 + number]}
            if not same(bound.run(part), plain.run(part)):
                wrong.append(number)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("make", BATCHERS)
def test_a_batcher_writes_rows_where_a_bound_model_reads_them(
    version: Path, manifest: Manifest, digits: Digits, make: Callable[..., Batcher]
) -> None:
    plain, bound = load(version, manifest, CPU), host_bound(version, manifest)
    (buffers,) = input_buffers(manifest, 8, 1, allocate)
    read_there: list[bool] = []

    def run(inputs: Tensors) -> Tensors:
        read_there.append(inputs["images"].ctypes.data == buffers["images"].ctypes.data)
        return bound.run(inputs)

    batcher = make(run, max_batch_size=8, buckets=(4, 8), buffers=[buffers])
    parts: list[Tensors] = [{"images": digits.images[at : at + rows]} for at, rows in ROWS]
    outcomes: list[Future[Outcome]] = [Future() for _ in parts]
    for part, outcome in zip(parts, outcomes, strict=True):
        batcher.submit(Request(part, outcome.set_result))
    for part, outcome in zip(parts, outcomes, strict=True):
        answer = outcome.result(PATIENCE)
        assert isinstance(answer, Answer)
        assert same(answer.outputs, plain.run(part))
    assert batcher.close(PATIENCE)
    assert all(read_there)


def test_each_bucket_has_tensors_of_its_own(
    version: Path, manifest: Manifest, digits: Digits
) -> None:
    plain = load(version, manifest, CPU)
    variant = manifest.variant(ONNX_PLATFORM, "fp32")
    assert variant is not None
    session = open_session(version, manifest, variant, CPU)
    bound = GraphBound(session, manifest, (2, 4), device="cpu")
    for start in (0, 10, 20):
        for rows in (2, 4):
            part: Tensors = {"images": digits.images[start : start + rows]}
            assert same(bound.run(part), plain.run(part))
    with pytest.raises(ValueError, match=r"3 rows: CUDA graphs were captured for \[2, 4\]"):
        bound.run({"images": digits.images[:3]})


def test_only_sizes_that_follow_from_the_rows_and_no_strings_can_be_bound(repository: Path) -> None:
    names = ("classifier", "echo", "echo_fixed")
    manifests = [read_manifest(repository / name / "1") for name in names]
    assert [bindable(manifest) for manifest in manifests] == [True, False, False]

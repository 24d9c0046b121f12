"""What only the native batcher has: the lane's memory as arrays, facts, an owner it lets go of."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from conftest import LIFETIME, PATIENCE, ROOT
from numpy.typing import NDArray

from serving.batch import Answer, Outcome, Request, Tensors
from serving.native_batcher import NativeBatcher
from serving.predictions import FACTS, RECORD, PredictionPlan

pytestmark = pytest.mark.lane

DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]
IMAGES = np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2) * 20
SCORES = np.array([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]], np.float32)


def answer_of(run: Callable[[Tensors], Tensors], inputs: Tensors, **options: object) -> Answer:
    batcher = NativeBatcher(run, max_batch_size=4, **options)  # type: ignore[arg-type]
    outcome: Future[Outcome] = Future()
    batcher.submit(Request(inputs, outcome.set_result))
    answer = outcome.result(PATIENCE)
    assert batcher.close(PATIENCE)
    assert isinstance(answer, Answer), answer
    return answer


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_every_type_go_through_as_they_are(dtype: str) -> None:
    array = np.arange(12).reshape(2, 3, 2).astype(dtype)
    outputs = answer_of(lambda inputs: {"y": inputs["x"]}, {"x": array}).outputs
    assert outputs["y"].dtype == array.dtype
    assert outputs["y"].tolist() == array.tolist()


def test_an_array_whose_elements_do_not_follow_each_other_goes_through() -> None:
    array = np.arange(12).reshape(2, 6)[:, ::2]
    outputs = answer_of(lambda inputs: {"y": inputs["x"].T.copy().T}, {"x": array}).outputs
    assert outputs["y"].tolist() == [[0, 2, 4], [6, 8, 10]]


def test_an_array_of_objects_is_the_callers_mistake() -> None:
    batcher = NativeBatcher(dict, max_batch_size=4)
    request = Request({"x": np.array(["text"], object)}, print)
    with pytest.raises(TypeError, match="input 'x' has a type that the lane does not carry"):
        batcher.submit(request)
    assert not request.settled
    assert batcher.close(PATIENCE)


def test_a_request_of_a_level_that_is_not_there_is_the_callers_mistake() -> None:
    batcher = NativeBatcher(dict, max_batch_size=4)
    with pytest.raises(IndexError):
        batcher.submit(Request({"x": np.zeros(1)}, print, priority=1))
    assert batcher.close(PATIENCE)


def test_inputs_live_as_long_as_somebody_has_them() -> None:
    kept: list[Tensors] = []

    def run(inputs: Tensors) -> Tensors:
        kept.append(inputs)
        return {"y": inputs["x"]}

    answer_of(run, {"x": np.array([1.0, 2.0])})
    assert kept[0]["x"].tolist() == [1.0, 2.0]
    assert not kept[0]["x"].flags.writeable


def test_who_keeps_what_is_in_a_models_buffers_keeps_them_from_being_written_over() -> None:
    buffers: Tensors = {"x": np.zeros(4)}
    kept: list[Tensors] = []

    def run(inputs: Tensors) -> Tensors:
        kept.append(inputs)
        return {"y": inputs["x"] * 2}

    batcher = NativeBatcher(run, max_batch_size=4, buffers=[buffers])
    for value in (1.0, 2.0):
        outcome: Future[Outcome] = Future()
        batcher.submit(Request({"x": np.full(3, value)}, outcome.set_result))
        answer = outcome.result(PATIENCE)
        assert isinstance(answer, Answer)
        assert answer.outputs["y"].tolist() == [2 * value] * 3
    assert batcher.close(PATIENCE)
    assert [each["x"].tolist() for each in kept] == [[1.0] * 3, [2.0] * 3]
    assert np.shares_memory(kept[0]["x"], buffers["x"])
    assert not np.shares_memory(kept[1]["x"], buffers["x"])


def test_a_models_buffers_go_with_the_last_that_is_read_from_them() -> None:
    buffer = np.zeros(4)
    gone = weakref.ref(buffer)
    kept: list[Tensors] = []

    def run(inputs: Tensors) -> Tensors:
        kept.append(inputs)
        return {"y": np.zeros(2)}

    answer_of(run, {"x": np.array([1.0, 2.0])}, buffers=[{"x": buffer}])
    del buffer
    gc.collect()
    assert gone() is not None
    assert kept.pop()["x"].tolist() == [1.0, 2.0]
    assert gone() is None


def test_with_a_plan_rows_are_in_the_models_buffers_and_the_lane_reads_their_ink_there() -> None:
    buffers: Tensors = {"images": np.full((4, 2, 2), 99, np.uint8)}
    answer = answer_of(
        lambda inputs: {"scores": SCORES},
        {"images": IMAGES},
        plan=PredictionPlan("scores", "scores", "images", 1.0),
        buffers=[buffers],
    )
    assert buffers["images"][:3].tolist() == IMAGES.tolist()
    ink = IMAGES.reshape(3, -1).mean(axis=1) / 255
    assert answer.outputs[FACTS]["ink"].tolist() == pytest.approx(ink)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "buffer",
    [np.zeros((4, 4))[:, ::2], np.zeros(()), np.empty(4, object), np.frombuffer(bytes(32))],
)
def test_what_rows_cannot_be_written_into_is_no_buffer(buffer: NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match=r"no buffer for rows|not writeable"):
        NativeBatcher(dict, max_batch_size=4, buffers=[{"x": buffer}])


def test_facts_that_a_run_adds_come_with_the_answer() -> None:
    facts = np.array([(1, 0.75, 0.7, 0.5), (0, 0.5, np.nan, 0.25)], RECORD)
    answer = answer_of(lambda inputs: {"y": inputs["x"], FACTS: facts}, {"x": np.zeros((2, 1))})
    assert answer.outputs[FACTS].dtype == RECORD
    assert repr(answer.outputs[FACTS].tolist()) == repr(facts.tolist())


def test_with_a_plan_the_lane_adds_the_facts() -> None:
    answer = answer_of(
        lambda inputs: {"scores": SCORES},
        {"images": IMAGES},
        plan=PredictionPlan("scores", "scores", "images", 1.0),
    )
    facts: Any = answer.outputs[FACTS]
    assert facts["label"].tolist() == [1, 0, 0]
    assert facts["confidence"].tolist() == [0.75, 0.5, 1.0]
    assert facts["ink"].tolist() == pytest.approx(IMAGES.reshape(3, -1).mean(axis=1) / 255)


class Owner:
    """Owns the batcher that runs a method of it, as who serves a model does."""

    def __init__(self, gate: threading.Event) -> None:
        self._gate = gate
        self.entered = threading.Event()
        self.batcher = NativeBatcher(self.run, max_batch_size=1)

    def run(self, inputs: Tensors) -> Tensors:
        self.entered.set()
        assert self._gate.wait(PATIENCE)
        return inputs


@pytest.mark.parametrize("timeout", [PATIENCE, 0.0])
def test_who_owns_a_batcher_is_freed_once_it_is_closed_and_what_ran_has_ended(
    timeout: float,
) -> None:
    gate, freed = threading.Event(), threading.Event()
    owner = Owner(gate)
    weakref.finalize(owner, freed.set)
    outcome: Future[Outcome] = Future()
    owner.batcher.submit(Request({"x": np.zeros(1)}, outcome.set_result))
    assert owner.entered.wait(PATIENCE)
    if timeout:
        gate.set()
    assert owner.batcher.close(timeout) is bool(timeout)
    del owner
    gate.set()
    assert isinstance(outcome.result(PATIENCE), Answer)
    end = time.monotonic() + PATIENCE
    while not freed.wait(0.001):  # its last thread may still be about to end
        gc.collect()
        assert time.monotonic() < end


ENDS = """
import threading
import numpy as np
from serving.batch import Request
from serving.native_batcher import NativeBatcher

entered = threading.Event()

def run(inputs):
    entered.set()
    for _ in range({turns}):
        threading.Event().wait(0.001)
    return inputs

batcher = NativeBatcher(run, max_batch_size=1, observe=print)
for _ in range(3):
    batcher.submit(Request({{"x": np.zeros(1)}}, lambda outcome: None))
entered.wait()
"""


@pytest.mark.parametrize("turns", [0, 100, 100_000])
def test_a_process_ends_well_that_has_not_closed_its_batcher(turns: int) -> None:
    """Those that wait are refused then, and the last that runs is waited for only so long."""
    ended = subprocess.run(
        [sys.executable, "-c", ENDS.format(turns=turns)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIFETIME,
    )
    assert (ended.returncode, ended.stderr) == (0, "")

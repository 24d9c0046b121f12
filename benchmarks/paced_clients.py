"""Clients in a process of their own that ask for an image each, at a pace or without pause."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import multiprocessing
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection

import grpc
import numpy as np
from numpy.typing import NDArray

from serving.pb import inference_pb2 as pb
from serving.pb import inference_pb2_grpc as pb_grpc

CLIENTS = 8

Images = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One answer: when it was asked for and came (time.monotonic), and from which version."""

    asked: float
    came: float
    version: int


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """What clients felt in a span of time; milliseconds."""

    longest_stall_ms: float  # without any answer
    slowest_answer_ms: float
    p99_ms: float


@contextlib.contextmanager
def paced_clients(address: str, images: Images, rate: float) -> Iterator[list[Sample]]:
    """Ask for `rate` images a second, over a connection for each client, while the block lasts.

    When it is left, the list holds all samples in the order in which they came.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_ask_all, args=(address, images, rate, theirs))
    process.start()
    ours.recv()  # they begin
    samples: list[Sample] = []
    yield samples
    ours.send(None)
    samples += sorted(ours.recv(), key=lambda sample: sample.came)
    process.join()


def _ask_all(address: str, images: Images, rate: float, connection: Connection) -> None:
    over, samples = threading.Event(), list[Sample]()
    threads = [
        threading.Thread(target=_ask, args=(address, images[n], CLIENTS / rate, over, samples))
        for n in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    connection.send(None)
    connection.recv()
    over.set()
    for thread in threads:
        thread.join()
    connection.send(samples)


def _ask(
    address: str, image: Images, interval: float, over: threading.Event, samples: list[Sample]
) -> None:
    """One request after the other, `interval` seconds apart or as fast as answers come."""
    request = pb.ModelInferRequest(model_name="resnet18", raw_input_contents=[image.tobytes()])
    request.inputs.add(name="images", datatype="UINT8", shape=[1, 28, 28])
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        due = time.monotonic()
        while not over.is_set():
            asked = time.monotonic()
            answer = stub.ModelInfer(request)  # a failure ends the benchmark, as it should
            came = time.monotonic()
            samples.append(Sample(asked, came, int(answer.model_version)))
            due = max(due + interval, came)
            time.sleep(due - came)


def per_second(samples: Sequence[Sample]) -> float:
    """Answers."""
    return len(samples) / (samples[-1].came - samples[0].came)


def span_of(samples: Sequence[Sample], start: float, end: float) -> Span:
    """What clients felt between two times."""
    inside = [sample for sample in samples if start <= sample.came <= end]
    came = [sample.came for sample in inside]
    took = [sample.came - sample.asked for sample in inside]
    gaps = [b - a for a, b in itertools.pairwise(came)]
    p99 = statistics.quantiles(took, n=100)[98]
    return Span(*(round(each * 1e3, 1) for each in (max(gaps), max(took), p99)))

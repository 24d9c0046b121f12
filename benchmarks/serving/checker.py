"""Asks real images while a server is under load, and compares each answer with ONNX Runtime's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import grpc
import numpy as np

from benchmarks.serving.models import Model
from benchmarks.serving.wire import Lost, NoAnswer, Probabilities, Protocol, WrongAnswer

TOLERANCE = 1e-3  # of a probability; exports agree with each other to 1e-4
# Seconds between two questions, so that the load is not theirs: while this process has the core,
# who asks for load waits, which at 150,000 requests/s is soon a share of them.
PAUSE = 0.1
_TIMEOUT = 30.0  # seconds for one answer
_PATIENCE = 5.0  # seconds for one answer under load
_READY = b"\x08\x01"  # a ServerReadyResponse: field 1 is true


def _bytes(message: bytes) -> bytes:
    return message


class Checker:
    """A client of one server and model. `checked` counts the answers that were right, `lost` the
    requests under load that none came for.
    """

    def __init__(self, port: int, protocol: Protocol, model: Model, fixed: bool) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self._protocol = protocol
        self._model = model
        self._images = 1 if fixed else len(model.images)  # how many it can answer rightly
        self.checked = 0
        self.lost = 0

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def ready(self) -> bool:
        """The server says so, where it can be asked, and then answers an image rightly."""
        try:
            path = self._protocol.ready
            if path and not self.ask(path, b"").startswith(_READY):
                return False
            self.check_one(0)
        except NoAnswer:
            return False
        return True

    def check_all(self) -> None:
        """Each image on its own."""
        for index in range(self._images):
            self.check_one(index)

    def check_one(self, index: int, timeout: float = _TIMEOUT) -> None:
        """Ask one image; WrongAnswer where the answer is not ONNX Runtime's."""
        row = slice(index % self._images, index % self._images + 1)
        request = self._protocol.encode(self._model.name, self._model.images[row])
        answer = self._protocol.decode(self.ask(self._protocol.infer, request, timeout), 1)
        self._compare(answer, self._model.expected[row])

    def check_batch(self, rows: int) -> int:
        """Ask so many images in one request; the answer's length in bytes."""
        images, expected = self._model.batch(rows)
        request = self._protocol.encode(self._model.name, images)
        answer = self.ask(self._protocol.infer, request)
        self._compare(self._protocol.decode(answer, rows), expected)
        return len(answer)

    def check_answers(self, answers: Iterable[bytes]) -> None:
        """What others were answered who asked the first image."""
        for answer in answers:
            self._compare(self._protocol.decode(answer, 1), self._model.expected[:1])

    @contextmanager
    def checking(self, seconds: float) -> Iterator[None]:
        """Ask one image after another during the block, at most so long; raises what went wrong."""
        stopping = threading.Event()
        errors: list[Exception] = []
        thread = threading.Thread(target=self._keep_asking, args=(stopping, seconds, errors))
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()
        if errors:
            raise errors[0]

    def _keep_asking(
        self, stopping: threading.Event, seconds: float, errors: list[Exception]
    ) -> None:
        index, end = 0, time.monotonic() + seconds
        try:
            while not stopping.wait(PAUSE) and time.monotonic() < end:
                try:
                    self.check_one(index, _PATIENCE)
                except Lost:
                    self.lost += 1
                index += 1
        except Exception as error:
            errors.append(error)

    def _compare(self, answer: Probabilities, expected: Probabilities) -> None:
        if answer.shape != expected.shape or not np.allclose(answer, expected, atol=TOLERANCE):
            raise WrongAnswer(f"{self._model.name}: got {answer}, expected {expected}")
        self.checked += len(answer)

    def ask(self, path: str, request: bytes, timeout: float = _TIMEOUT) -> bytes:
        """The answer to a message; Lost or NoAnswer where there is none."""
        method = self._channel.unary_unary(
            path, request_serializer=_bytes, response_deserializer=_bytes
        )
        try:
            return bytes(method(request, timeout=timeout))
        except grpc.RpcError as error:
            code = error.code()
            kind = Lost if code is grpc.StatusCode.DEADLINE_EXCEEDED else NoAnswer
            raise kind(f"{code.name}: {error.details()}") from None


def wait_until(condition: Callable[[], bool], alive: Callable[[], bool], seconds: float) -> bool:
    """Poll every few milliseconds; false when the process ended or the time is up."""
    end = time.monotonic() + seconds
    while not condition():
        if not alive() or time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True

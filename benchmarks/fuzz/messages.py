"""ModelInfer's messages, through the seam that every transport hands them to (InferenceService).

Judges that each gets exactly one outcome, of a status that a bad request may have; that an echo's
answer is what was sent, to the byte; and that a good request among them is answered rightly.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from random import Random

import numpy as np

from benchmarks.fuzz import damage, models
from benchmarks.fuzz.running import HANG, Target, Wrong
from serving.datatypes import DATATYPES, encode_raw
from serving.inference import InferenceService
from serving.pb import inference_pb2 as pb
from serving.replies import Refusal, Reply

# What a server that has room, and does not stop, may say of a bad request, or of one that is late.
STATUSES = {"INVALID_ARGUMENT", "NOT_FOUND"}
LATE = STATUSES | {"DEADLINE_EXCEEDED", "CANCELLED"}
WORDS = (
    *models.TYPES,
    *("echo", "fixed", "free", "digits", "images", "probabilities", "labels", "1", "2"),
    *(f"{way}_{kind}" for way in ("in", "out") for kind in ("FP32", "INT64", "BYTES", "FP16")),
    *("priority", "timeout", "sequence_id", "classification", "shared_memory_region"),
)
_PARAMETERS = ("priority", "timeout", "sequence_id", "binary_data_output")


def values(kind: str, rows: int) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """Rows of three elements of a datatype."""
    if kind == "BYTES":
        return np.array([[f"é{row}{column}" for column in range(3)] for row in range(rows)], object)
    numbers = np.arange(rows * 3).reshape(rows, 3) % 2
    return numbers.astype(DATATYPES[kind].dtype)


def echo(model: tuple[str, tuple[int, ...], tuple[str, ...]], rows: int) -> pb.ModelInferRequest:
    """A good request with raw contents."""
    name, _, types = model
    request = pb.ModelInferRequest(model_name=name, id=f"{name}-{rows}")
    for kind in types:
        request.inputs.add(name=f"in_{kind}", datatype=kind, shape=[rows, 3])
        request.raw_input_contents.append(encode_raw(DATATYPES[kind], values(kind, rows)))
    return request


def typed(model: tuple[str, tuple[int, ...], tuple[str, ...]], rows: int) -> pb.ModelInferRequest:
    """One with typed contents, as far as datatypes have them."""
    name, _, types = model
    request = pb.ModelInferRequest(model_name=name)
    for kind in types:
        tensor = request.inputs.add(name=f"in_{kind}", datatype=kind, shape=[rows, 3])
        if field := DATATYPES[kind].contents:
            flat = values(kind, rows).reshape(-1).tolist()
            texts = [each.encode() for each in flat] if kind == "BYTES" else flat
            getattr(tensor.contents, field).extend(texts)
    return request


def digits(rows: int) -> pb.ModelInferRequest:
    """Images for the classifier."""
    request = pb.ModelInferRequest(model_name=models.DIGITS, raw_input_contents=[bytes(784 * rows)])
    request.inputs.add(name="images", datatype="UINT8", shape=[rows, 28, 28])
    return request


def _with_parameters(request: pb.ModelInferRequest) -> pb.ModelInferRequest:
    for name in _PARAMETERS:
        request.parameters[name].int64_param = 1_000_000
    return request


def _chosen(request: pb.ModelInferRequest, *outputs: str) -> pb.ModelInferRequest:
    for name in outputs:
        request.outputs.add(name=name).parameters["classification"].int64_param = 2
    request.outputs.add(name=outputs[0])
    return request


SEEDS = [
    message.SerializeToString()
    for message in (
        echo(models.ECHO, 1),
        echo(models.ECHO, 2),
        echo(models.FIXED, 2),
        *[echo(models.FREE, rows) for rows in (1, 2, 5)],
        typed(models.ECHO, 1),
        typed(models.FIXED, 2),
        *[typed(models.FREE, rows) for rows in (1, 3)],
        *[digits(rows) for rows in (1, 1, 3)],
        _with_parameters(echo(models.FREE, 1)),
        _with_parameters(digits(1)),
        _chosen(digits(2), "probabilities", "labels"),
        _chosen(echo(models.FREE, 2), "out_FP32", "out_INT64"),
        _chosen(echo(models.ECHO, 1), "out_FP64", "out_UINT8", "out_BOOL"),
    )
]
GOOD = echo(models.FREE, 3)


def infer_message(draw: Random) -> bytes:
    """A ModelInferRequest with faults in its fields, its bytes, or both; seldom just noise."""
    seed = draw.choice(SEEDS)
    kind = draw.random()
    if kind < 0.02:
        return draw.randbytes(draw.randrange(200))
    if kind < 0.2:
        return damage.bytes_of(draw, seed, SEEDS)
    message = pb.ModelInferRequest.FromString(seed)
    damage.message_of(draw, message, WORDS)
    data = message.SerializeToString()
    return damage.bytes_of(draw, data, SEEDS) if kind > 0.93 else data


class Messages:
    """The target."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service
        self._answered: SimpleQueue[tuple[int, Reply | Refusal]] = SimpleQueue()
        self._asked = 0

    def case(self, draw: Random) -> bytes:
        """One more message."""
        return infer_message(draw)

    def judge(self, cases: Sequence[bytes]) -> list[str]:
        """All at once, as if they came together, and a good one with them."""
        base = self._asked
        self._asked += len(cases) + 1
        for number, case in enumerate(cases, base):
            self._submit(number, case)
        self._submit(self._asked - 1, GOOD.SerializeToString(), in_time=True)
        outcomes = self._outcomes(cases, base)
        told = [verdict(case, outcomes[base + n]) for n, case in enumerate(cases)]
        if verdict(GOOD.SerializeToString(), outcomes[self._asked - 1]) != "OK":
            raise Wrong(f"a good request came to {outcomes[self._asked - 1]}", *cases)
        return told

    def _submit(self, number: int, message: bytes, *, in_time: bool = False) -> None:
        """By its content, some are late, and some given up."""
        fate = 0 if in_time else zlib.crc32(message) % 32
        deadline = time.monotonic() if fate == 1 else math.inf
        cancel = self._service.submit(
            message, deadline, lambda outcome: self._answered.put((number, outcome))
        )
        if fate == 2:
            cancel()

    def _outcomes(self, cases: Sequence[bytes], base: int) -> dict[int, Reply | Refusal]:
        outcomes: dict[int, Reply | Refusal] = {}
        while len(outcomes) <= len(cases):
            try:
                number, outcome = self._answered.get(timeout=HANG / 2)
            except Empty:
                late = [case for n, case in enumerate(cases, base) if n not in outcomes]
                raise Wrong("no outcome", *late) from None
            if number in outcomes or number < base:
                raise Wrong(f"answered twice: {outcome}", *cases)
            outcomes[number] = outcome
        return outcomes


def verdict(message: bytes, outcome: Reply | Refusal) -> str:
    """The outcome's status; Wrong where it must not have come of the message."""
    if isinstance(outcome, Refusal):
        if outcome.status not in LATE or not 0 < len(outcome.details) <= 1000:
            raise Wrong(f"{outcome.status}: {outcome.details}", message)
        return outcome.status
    check_echo(message, pb.ModelInferResponse.FromString(outcome.message))
    return "OK"


def check_echo(message: bytes, response: pb.ModelInferResponse) -> None:
    """Each output has the bytes that its shape takes; an echo's are those of its input."""
    request = pb.ModelInferRequest.FromString(message)
    if (response.id, response.model_name) != (request.id, request.model_name):
        raise Wrong(f"the answer is another's: {response.id} {response.model_name}", message)
    sent = dict(
        zip((each.name for each in request.inputs), request.raw_input_contents, strict=False)
    )
    classified = {each.name for each in request.outputs if each.parameters}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        size = DATATYPES[output.datatype].dtype.itemsize
        if output.datatype != "BYTES" and len(raw) != math.prod(output.shape) * size:
            raise Wrong(f"{output.name} has {len(raw)} bytes, shape {list(output.shape)}", message)
        source = sent.get(output.name.replace("out_", "in_"))
        if output.name not in classified and source is not None and source != raw:
            raise Wrong(f"{output.name} is not what was sent", message)


@contextmanager
def opened() -> Iterator[Target]:
    """A server's own InferenceService."""
    with models.server() as running:
        yield Messages(running.inference.service)

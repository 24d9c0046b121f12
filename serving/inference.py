"""InferenceService: a ModelInfer message's bytes in, a completion with the answer's bytes out.

The seam between any transport and the models. It knows the V2 messages and no transport: whoever
listens hands in what arrived and a callback, and waits for nothing.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

from serving import tensors
from serving.batch import SHORTEST_RETRY, Answer, Outcome, Stages
from serving.errors import BatcherClosed, InvalidInput, ModelNotReady, QueueFull
from serving.metrics import Metrics
from serving.parameters import Parameters, parameters
from serving.pb import inference_pb2 as pb
from serving.registry import ModelRegistry, ServedModel
from serving.status import status_of
from serving.tensors import RequestedOutput
from serving.trace import Tracer

# How often a request looks for another version when the one that it found is being unloaded.
_ATTEMPTS = 5


class Timing(NamedTuple):
    """What an answer cost, by which version; durations in seconds."""

    version: str
    queue_seconds: float
    stages: Stages


class Reply(NamedTuple):
    """An answer: a serialised ModelInferResponse."""

    message: bytes
    timing: Timing


class Refusal(NamedTuple):
    """No answer: a canonical status name and a text for the caller."""

    status: str
    details: str
    request_id: str
    retry_after: float | None = None  # seconds, where trying again is worth while


Respond = Callable[[Reply | Refusal], None]


class InferenceService:
    """Answers inference requests for the models of a registry, and counts them."""

    def __init__(
        self, registry: ModelRegistry, metrics: Metrics, tracer: Tracer, priority_levels: int
    ) -> None:
        self._registry = registry
        self._metrics = metrics
        self._tracer = tracer
        self._priority_levels = priority_levels
        self._in_flight = 0
        self._last_wait = 0.0  # seconds that the last answer spent in the queue
        self._changed = threading.Condition()

    def submit(self, message: bytes, deadline: float, respond: Respond) -> Callable[[], None]:
        """Answer a serialised ModelInferRequest by calling `respond` once, from any thread.

        `deadline` is an absolute time.monotonic. The callable that is returned cancels: the request
        gets its refusal at once, and is not run unless it already is. `respond` must not wait.
        """
        call = _Call(self, respond)
        with self._changed:
            self._in_flight += 1
        try:
            return call.begin(message, deadline)
        except Exception as error:  # whatever it is, it must be answered
            call.refuse(error)
            return _nothing

    @property
    def in_flight(self) -> int:
        """Requests that were submitted and are not answered yet."""
        return self._in_flight

    def refuse_unread(self) -> Refusal:
        """How to refuse a request for which there is no room at all, whatever it asks; counted."""
        self._metrics.unknown_model("RESOURCE_EXHAUSTED")
        retry_after = max(SHORTEST_RETRY, self._last_wait)
        return Refusal("RESOURCE_EXHAUSTED", "the server is overloaded", "", retry_after)

    def wait_until_idle(self, timeout: float) -> bool:
        """Whether no request is in flight any more, after at most `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._in_flight, timeout)

    def _left(self) -> None:
        with self._changed:
            self._in_flight -= 1
            if not self._in_flight:
                self._changed.notify_all()

    def _level(self, asked: Parameters) -> int:
        """The batcher's level: of 0 and what is beyond, the last, as Triton has a default."""
        levels = self._priority_levels
        return (asked.priority if 1 <= asked.priority <= levels else levels) - 1


class _Call:
    """One request on its way: what is needed to answer it."""

    __slots__ = ("_arrived", "_outputs", "_request_id", "_respond", "_served", "_service")

    def __init__(self, service: InferenceService, respond: Respond) -> None:
        self._service = service
        self._respond = respond
        self._arrived = time.monotonic()
        self._request_id = ""
        self._served: ServedModel | None = None
        self._outputs: Sequence[RequestedOutput] = ()

    def begin(self, message: bytes, deadline: float) -> Callable[[], None]:
        """Check the request and queue it; how to cancel it."""
        try:
            request = pb.ModelInferRequest.FromString(message)
        except DecodeError:
            raise InvalidInput("the message is no ModelInferRequest") from None
        self._request_id = request.id
        asked = parameters(request)
        if asked.timeout is not None:
            deadline = min(deadline, self._arrived + asked.timeout)
        for _ in range(_ATTEMPTS):
            try:
                return self._queue(request, deadline, self._service._level(asked))
            except BatcherClosed:
                continue
        raise ModelNotReady(f"model {request.model_name!r} is being unloaded")

    def _queue(
        self, request: pb.ModelInferRequest, deadline: float, level: int
    ) -> Callable[[], None]:
        served = self._served = self._service._registry.get(
            request.model_name, request.model_version
        )
        manifest = served.manifest
        self._outputs = (
            tensors.requested_outputs(request, manifest.outputs)
            if request.outputs
            else served.all_outputs
        )
        inputs = tensors.decode_inputs(request, manifest.inputs)
        pending = served.request(
            inputs, self._complete, deadline=deadline, priority=level, arrived=self._arrived
        )
        served.submit(pending)
        return pending.cancel

    def refuse(self, error: Exception) -> None:
        """Answer with the error's status, and count it."""
        status, details = status_of(error)
        if self._served:
            self._served.metrics.failed(status, time.monotonic() - self._arrived)
        else:
            self._service._metrics.unknown_model(status)
        retry_after = error.retry_after if isinstance(error, QueueFull) else None
        self._finish(Refusal(status, details, self._request_id, retry_after))

    def _complete(self, outcome: Outcome) -> None:
        """The batcher is done with the request."""
        if not isinstance(outcome, Answer):
            self.refuse(outcome)
            return
        try:
            reply = self._reply(outcome)
        except Exception as error:  # a model whose outputs are not what its manifest says
            self.refuse(error)
            return
        self._finish(reply)

    def _reply(self, answer: Answer) -> Reply:
        served = self._served
        assert served
        response = pb.ModelInferResponse(
            model_name=served.manifest.name, model_version=served.version, id=self._request_id
        )
        tensors.encode_outputs(
            response,
            served.outputs(answer),
            self._outputs,
            served.manifest.labels,
            served.batchable,
        )
        self._service._last_wait = answer.queue_seconds
        timing = Timing(response.model_version, answer.queue_seconds, answer.stages)
        if self._service._tracer.active:
            facts = functools.partial(self._facts, timing)
            self._service._tracer.record(response.model_name, response.id, facts)
        return Reply(response.SerializeToString(), timing)

    def _facts(self, timing: Timing) -> dict[str, object]:
        return {
            "version": timing.version,
            "seconds": time.monotonic() - self._arrived,
            "queue_seconds": timing.queue_seconds,
            **timing.stages._asdict(),
        }

    def _finish(self, outcome: Reply | Refusal) -> None:
        try:
            self._respond(outcome)
        finally:
            self._service._left()


def _nothing() -> None:
    """How to cancel what is over."""

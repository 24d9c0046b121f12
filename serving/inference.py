"""InferenceService: a ModelInfer message's bytes in, a completion with the answer's bytes out.

The seam between any transport and the models. It knows the V2 messages and no transport: whoever
listens hands in what arrived and a callback, and waits for nothing.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

from serving import tensors
from serving.access import Caller, Finished, Observe, Timing
from serving.batch import SHORTEST_RETRY, Answer, Outcome
from serving.errors import (
    BatcherClosed,
    Draining,
    InvalidInput,
    ModelNotReady,
    NoRoom,
    Overloaded,
    ServingError,
)
from serving.families import Exported
from serving.metrics import Metrics
from serving.parameters import Parameters, parameters
from serving.pb import inference_pb2 as pb
from serving.prediction_ids import Signer
from serving.predictions import Prediction
from serving.registry import ModelRegistry, ServedModel
from serving.status import reason_of, status_of
from serving.tensors import RequestedOutput
from serving.trace import Tracer

# How often a request looks for another version when the one that it found is being unloaded.
_ATTEMPTS = 5

log = logging.getLogger(__name__)


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
CallerOf = Callable[[], Caller]


class _Call:
    """One request on its way: what is needed to answer it."""

    __slots__ = (
        "arrived", "asked", "caller", "message_bytes", "outputs", "request_id", "respond", "rows",
        "served",
    )  # fmt: skip

    def __init__(
        self, respond: Respond, message_bytes: int, caller: CallerOf | None = None
    ) -> None:
        self.respond = respond
        self.message_bytes = message_bytes
        self.caller = caller
        self.asked = ("", "")  # model and version, where somebody observes
        self.rows = 0
        self.arrived = time.monotonic()
        self.request_id = ""
        self.served: ServedModel | None = None
        self.outputs: Sequence[RequestedOutput] = ()


class InferenceService:
    """Answers inference requests for the models of a registry, and counts them.

    Answers carry no prediction ids without a signer. A transport tells who called only where there
    are `observers`.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        metrics: Metrics,
        tracer: Tracer,
        signer: Signer | None,
        priority_levels: int,
        observers: Sequence[Observe] = (),
    ) -> None:
        self.observers = observers
        self._registry = registry
        self._metrics = metrics
        self._tracer = tracer
        self._signer = signer
        self._priority_levels = priority_levels
        self._in_flight = 0
        self._shown_in_flight = metrics.slots(Exported.in_flight)  # stored to under `_changed`
        self._last_wait = 0.0  # seconds that the last answer spent in the queue
        self._changed = threading.Condition()
        self.draining = False  # set when streams that go on must begin nothing new

    def submit(
        self, message: bytes, deadline: float, respond: Respond, caller: CallerOf | None = None
    ) -> Callable[[], None]:
        """Answer a serialised ModelInferRequest by calling `respond` once, from any thread.

        `deadline` is an absolute time.monotonic. The callable that is returned cancels: the request
        gets its refusal at once, and is not run unless it already is. `respond` must not wait.
        """
        call = _Call(respond, len(message), caller)
        with self._changed:
            self._in_flight += 1
            self._shown_in_flight[0] = self._in_flight
        try:
            return self._begin(call, message, deadline)
        except Exception as error:  # whatever it is, it must be answered
            self._refuse(call, error)
            return _nothing

    @property
    def in_flight(self) -> int:
        """Requests that were submitted and are not answered yet."""
        return self._in_flight

    def refuse_unread(self, message: bytes = b"", caller: CallerOf | None = None) -> Refusal:
        """How to refuse a request whatever it asks, where there is no room; counted.

        Of a stream's message, which was received all the same, the id is told.
        """
        error: ServingError = (
            Draining("the server is stopping")
            if self.draining
            else Overloaded("the server is overloaded", max(SHORTEST_RETRY, self._last_wait))
        )
        refusal = _refusal(error, _id_of(message), {})
        self._metrics.refused(refusal.status, reason_of(error), len(message))
        if self.observers:
            call = _Call(_unheard, len(message), caller)
            call.request_id = refusal.request_id
            self._tell(call, refusal)
        return refusal

    def wait_until_idle(self, timeout: float) -> bool:
        """Whether no request is in flight any more, after at most `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._in_flight, timeout)

    def _begin(self, call: _Call, message: bytes, deadline: float) -> Callable[[], None]:
        """Check the request and queue it; how to cancel it."""
        try:
            request = pb.ModelInferRequest.FromString(message)
        except DecodeError:
            raise InvalidInput("the message is no ModelInferRequest") from None
        call.request_id = request.id
        if self.observers:
            call.asked = request.model_name, request.model_version
        asked = parameters(request)
        if asked.timeout is not None:
            deadline = min(deadline, call.arrived + asked.timeout)
        for _ in range(_ATTEMPTS):
            try:
                return self._queue(call, request, deadline, self._level(asked))
            except BatcherClosed:
                continue
        raise ModelNotReady(f"model {request.model_name!r} is being unloaded")

    def _queue(
        self, call: _Call, request: pb.ModelInferRequest, deadline: float, level: int
    ) -> Callable[[], None]:
        served = call.served = self._registry.get(request.model_name, request.model_version)
        specs = served.manifest.outputs
        call.outputs = (
            tensors.requested_outputs(request, specs) if request.outputs else served.all_outputs
        )
        pending = served.request(
            tensors.decode_inputs(request, served.manifest.inputs),
            functools.partial(self._complete, call),
            deadline=deadline,
            priority=level,
            arrived=call.arrived,
        )
        call.rows = pending.rows
        served.submit(pending)
        return pending.cancel

    def _level(self, asked: Parameters) -> int:
        """The batcher's level: of 0 and what is beyond, the last, as Triton has a default."""
        levels = self._priority_levels
        return (asked.priority if 1 <= asked.priority <= levels else levels) - 1

    def _complete(self, call: _Call, outcome: Outcome) -> None:
        """The batcher is done with the request."""
        if not isinstance(outcome, Answer):
            self._refuse(call, outcome)
            return
        try:
            reply = self._reply(call, outcome)
        except Exception as error:  # a model whose outputs are not what its manifest says
            self._refuse(call, error)
            return
        self._finish(call, reply)

    def _reply(self, call: _Call, answer: Answer) -> Reply:
        served = call.served
        assert served
        response = pb.ModelInferResponse(
            model_name=served.manifest.name, model_version=served.version, id=call.request_id
        )
        outputs = served.outputs(answer)
        tensors.encode_outputs(
            response, outputs, call.outputs, served.manifest.labels, served.batchable
        )
        if predictions := served.predictions(outputs):
            served.observe(predictions)
            if self._signer:
                ids = _prediction_ids(self._signer, served, predictions)
                response.parameters["prediction_ids"].string_param = ids
        self._last_wait = answer.queue_seconds
        timing = Timing(served.version, answer.queue_seconds, answer.stages)
        message = response.SerializeToString()
        served.metrics.replied(call.message_bytes, len(message))
        return Reply(message, timing)

    def _refuse(self, call: _Call, error: Exception) -> None:
        """Answer with the error's status, and count it."""
        refusal = _refusal(error, call.request_id, _names(call))
        status, reason, size = refusal.status, reason_of(error), call.message_bytes
        try:
            if call.served:
                seconds = time.monotonic() - call.arrived
                call.served.metrics.failed(status, reason, seconds, size)
            else:
                self._metrics.refused(status, reason, size)
        finally:  # whatever becomes of the counts, the caller waits
            self._finish(call, refusal)

    def _tell(self, call: _Call, outcome: Reply | Refusal) -> None:
        """Those who observe; what goes wrong there is none of the caller's business."""
        try:
            finished = _finished(call, outcome)
            if self._tracer.active:
                self._tracer.record(finished)
            for observe in self.observers:
                observe(finished)
        except Exception:
            log.exception("a request could not be observed")

    def _finish(self, call: _Call, outcome: Reply | Refusal) -> None:
        try:
            call.respond(outcome)
            if self.observers or self._tracer.active:
                self._tell(call, outcome)
        finally:
            with self._changed:
                self._in_flight -= 1
                self._shown_in_flight[0] = self._in_flight
                if not self._in_flight:
                    self._changed.notify_all()


def _prediction_ids(signer: Signer, served: ServedModel, predictions: Sequence[Prediction]) -> str:
    """One for each row, joined by commas."""
    name, classes = served.manifest.name, len(served.manifest.labels)
    return ",".join(signer.ids(name, served.version, classes, predictions))


def _refusal(error: Exception, request_id: str, names: Mapping[str, str]) -> Refusal:
    status, details = status_of(error, **names)
    retry_after = error.retry_after if isinstance(error, NoRoom) else None
    return Refusal(status, details, request_id, retry_after)


def _id_of(message: bytes) -> str:
    try:
        return pb.ModelInferRequest.FromString(message).id
    except DecodeError:
        return ""


def _names(call: _Call) -> dict[str, str]:
    """What tells a failed request from others in the log, as far as it is known."""
    model, version = _model_of(call)
    request_id = call.request_id or (call.caller().request_id if call.caller else "")
    return {"model": model, "version": version, "request_id": request_id}


def _model_of(call: _Call) -> tuple[str, str]:
    """Name and version: what was found, or else what was asked for."""
    return (call.served.manifest.name, call.served.version) if call.served else call.asked


def _finished(call: _Call, outcome: Reply | Refusal) -> Finished:
    model, version = _model_of(call)
    refusal = outcome if isinstance(outcome, Refusal) else None
    reply = outcome if isinstance(outcome, Reply) else None
    return Finished(
        caller=call.caller,
        model=model,
        version=version,
        id=call.request_id,
        code=refusal.status if refusal else "OK",
        details=refusal.details if refusal else "",
        rows=call.rows,
        request_bytes=call.message_bytes,
        response_bytes=len(reply.message) if reply else 0,
        arrived=call.arrived,
        seconds=time.monotonic() - call.arrived,
        timing=reply.timing if reply else None,
    )


def _unheard(outcome: Reply | Refusal) -> None:
    """Answers a call that its transport refuses itself."""


def _nothing() -> None:
    """How to cancel what is over."""

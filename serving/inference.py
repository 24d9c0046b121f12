"""InferenceService: a ModelInfer message's bytes in, a completion with the answer's bytes out.

The seam between any transport and the models. It knows the V2 messages and no transport: whoever
listens hands in what arrived and a callback, and waits for nothing.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from google.protobuf.message import DecodeError

from serving import replies, tensors
from serving.access import Caller, Finished, Observe, Timing
from serving.batch import SHORTEST_RETRY, Answer, Outcome
from serving.errors import (
    BatcherClosed,
    Draining,
    InvalidInput,
    ModelNotReady,
    Overloaded,
    ServingError,
)
from serving.families import Exported
from serving.metrics import Metrics
from serving.parameters import Parameters, parameters
from serving.pb import inference_pb2 as pb
from serving.prediction_ids import Signer
from serving.registry import ModelRegistry, ServedModel
from serving.replies import Refusal, Reply, Respond
from serving.status import is_fault, reason_of
from serving.tensors import RequestedOutput
from serving.trace import Tracer

# How often a request looks for another version when the one that it found is being unloaded.
_ATTEMPTS = 5

CallerOf = Callable[[], Caller]

log = logging.getLogger(__name__)


class _Call:
    """One request on its way: what is needed to answer it, and to tell of it."""

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
        self.asked = ("", "")  # model and version
        self.rows = 0
        self.arrived = time.monotonic()
        self.request_id = ""
        self.served: ServedModel | None = None
        self.outputs: Sequence[RequestedOutput] = ()

    @property
    def model(self) -> tuple[str, str]:
        """Name and version: what was found, or else what was asked for."""
        return (self.served.manifest.name, self.served.version) if self.served else self.asked

    def facts(self, error: Exception) -> dict[str, str]:
        """What tells the request from others in the log, as far as it is known."""
        model, version = self.model
        request_id = self.request_id
        if not request_id and self.caller and is_fault(error):  # headers take time to read
            request_id = self.caller().request_id
        return {"model": model, "version": version, "request_id": request_id}

    def finished(self, outcome: Reply | Refusal) -> Finished:
        """What is told of it once it is over."""
        model, version = self.model
        refusal = outcome if isinstance(outcome, Refusal) else None
        reply = outcome if isinstance(outcome, Reply) else None
        return Finished(
            caller=self.caller,
            model=model,
            version=version,
            id=self.request_id,
            code=refusal.status if refusal else "OK",
            details=refusal.details if refusal else "",
            rows=self.rows,
            request_bytes=self.message_bytes,
            response_bytes=len(reply.message) if reply else 0,
            arrived=self.arrived,
            seconds=time.monotonic() - self.arrived,
            timing=reply.timing if reply else None,
        )


class Answering(Protocol):
    """Serialised requests in, serialised answers out: what a transport needs to know of a service
    that answers when it can."""

    @property
    def draining(self) -> bool:
        """Streams that go on must begin nothing new."""

    def submit(
        self, message: bytes, deadline: float, respond: Respond, caller: CallerOf | None = None
    ) -> Callable[[], None]:
        """As InferenceService has it."""

    def refuse_unread(
        self,
        message: bytes = b"",
        caller: CallerOf | None = None,
        error: ServingError | None = None,
    ) -> Refusal:
        """As InferenceService has it."""


class InferenceService:
    """Answers inference requests for the models of a registry, and counts them.

    Answers carry no prediction ids without a signer.
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
        self._observers = observers
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

    def refuse_unread(
        self,
        message: bytes = b"",
        caller: CallerOf | None = None,
        error: ServingError | None = None,
    ) -> Refusal:
        """How to refuse a request whatever it asks, for an `error` or as there is no room; counted.

        Of a stream's message, which was received all the same, the id is told.
        """
        if error is None:
            error = (
                Draining("the server is stopping")
                if self.draining
                else Overloaded("the server is overloaded", max(SHORTEST_RETRY, self._last_wait))
            )
        return self.refuse(error, replies.request_id(message), len(message), caller)

    def refuse(
        self,
        error: Exception,
        request_id: str = "",
        message_bytes: int = 0,
        caller: CallerOf | None = None,
    ) -> Refusal:
        """How to refuse what never became a request to a model; counted."""
        refusal = replies.refusal(error, request_id, {"request_id": request_id})
        self._metrics.refused(refusal.status, reason_of(error), message_bytes)
        if self._observers:
            call = _Call(_unheard, message_bytes, caller)
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
        """The answer's bytes; counted once nothing can go wrong with them any more."""
        served = call.served
        assert served
        outputs = served.outputs(answer)
        response = replies.response(served, call.request_id, outputs, call.outputs)
        predictions = served.predictions(outputs)
        if predictions and self._signer:
            replies.sign(response, self._signer, len(served.manifest.labels), predictions)
        message = response.SerializeToString()
        served.observe(predictions)
        served.metrics.replied(call.message_bytes, len(message))
        self._last_wait = answer.queue_seconds
        return Reply(message, Timing(served.version, answer.queue_seconds, answer.stages))

    def _refuse(self, call: _Call, error: Exception) -> None:
        """Answer with the error's status, and count it."""
        refusal = replies.refusal(error, call.request_id, call.facts(error))
        status, reason, size = refusal.status, reason_of(error), call.message_bytes
        try:
            if call.served:
                seconds = time.monotonic() - call.arrived
                call.served.metrics.failed(status, reason, seconds, size)
            else:
                self._metrics.refused(status, reason, size)
        finally:  # whatever becomes of the counts, the caller waits
            self._finish(call, refusal)

    def _finish(self, call: _Call, outcome: Reply | Refusal) -> None:
        try:
            call.respond(outcome)
            if self._observers or self._tracer.active:
                self._tell(call, outcome)
        finally:
            with self._changed:
                self._in_flight -= 1
                self._shown_in_flight[0] = self._in_flight
                if not self._in_flight:
                    self._changed.notify_all()

    def _tell(self, call: _Call, outcome: Reply | Refusal) -> None:
        """Those who observe; what goes wrong there is none of the caller's business."""
        try:
            finished = call.finished(outcome)
            if self._tracer.active:
                self._tracer.record(finished)
            for observe in self._observers:
                observe(finished)
        except Exception:
            log.exception("a request could not be observed")


def _unheard(outcome: Reply | Refusal) -> None:
    """Answers a call that its transport refuses itself."""


def _nothing() -> None:
    """How to cancel what is over."""

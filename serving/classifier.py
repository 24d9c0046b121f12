"""Classifier: a ClassifyRequest's bytes in, its answer's bytes out, by way of the InferenceService.

So each is counted, observed and signed as any other request to the model is. Knows no transport.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from google.protobuf.message import DecodeError

from serving import classify
from serving.decoding import Decoding
from serving.errors import (
    DeadlineExceeded,
    InvalidInput,
    Overloaded,
    RequestCancelled,
    ServingError,
)
from serving.inference import CallerOf, InferenceService
from serving.pb import digits_pb2 as pb
from serving.registry import ModelRegistry, ServedModel
from serving.replies import Refusal, Reply, Respond


class Classifier:
    """Answers as InferenceService does: `submit` waits for nothing, threads decode the images."""

    def __init__(
        self,
        service: InferenceService,
        registry: ModelRegistry,
        max_batch_size: int,
        decoding: Decoding | None = None,
    ) -> None:
        self.service = service
        self.registry = registry
        self.max_batch_size = max_batch_size
        self.decoding = decoding or Decoding()

    @property
    def draining(self) -> bool:
        """Streams that go on must begin nothing new."""
        return self.service.draining

    def submit(
        self, message: bytes, deadline: float, respond: Respond, caller: CallerOf | None = None
    ) -> Callable[[], None]:
        """As InferenceService.submit, for a serialised ClassifyRequest and ClassifyResponse."""
        call = _Call(self, message, deadline, respond, caller)
        try:
            self.decoding.submit(call.begin)
        except Overloaded as error:
            call.refuse(error)
        return call.cancel

    def refuse_unread(
        self,
        message: bytes = b"",
        caller: CallerOf | None = None,
        error: ServingError | None = None,
    ) -> Refusal:
        """As InferenceService.refuse_unread."""
        refusal = self.service.refuse_unread(caller=caller, error=error)
        return refusal._replace(request_id=_request_id(message))


class _Call:
    """One request on its way: on a decoding thread, then with the model, then answered."""

    def __init__(
        self,
        classifier: Classifier,
        message: bytes,
        deadline: float,
        respond: Respond,
        caller: CallerOf | None,
    ) -> None:
        self._classifier = classifier
        self._message = message
        self._deadline = deadline
        self._respond = respond
        self._caller = caller
        self._lock = threading.Lock()
        self._cancelled = False
        self._cancel_run: Callable[[], None] | None = None

    def begin(self) -> None:
        """Decode the images and ask the model; whatever it is, it is answered."""
        try:
            self._require_wanted()
            request = _parsed(self._message)
            classifier = self._classifier
            asked = classify.digit_model(
                classifier.registry, request.model_name, request.model_version
            )
            digits = self._digits(request)
            self._ask(request, asked, digits)
        except Exception as error:
            self.refuse(error)

    def _digits(self, request: pb.ClassifyRequest) -> classify.Digits:
        most = self._classifier.max_batch_size
        return classify.digits_of(request.images, most, self._require_wanted)

    def cancel(self) -> None:
        """What is not run yet is refused."""
        with self._lock:
            self._cancelled = True
            cancel_run = self._cancel_run
        if cancel_run:
            cancel_run()

    def refuse(self, error: Exception) -> None:
        """Answer with the error; counted."""
        request_id = _request_id(self._message)
        size, service = len(self._message), self._classifier.service
        self._respond(service.refuse(error, request_id, size, self._caller))

    def _ask(
        self, request: pb.ClassifyRequest, asked: ServedModel, digits: classify.Digits
    ) -> None:
        normalised = digits if request.return_normalised else None

        def answered(outcome: Reply | Refusal) -> None:
            self._respond(self._told(outcome, asked, normalised))

        question = classify.question(
            asked, digits, version=request.model_version, request_id=request.id
        )
        service = self._classifier.service
        cancel = service.submit(question, self._deadline, answered, self._caller)
        with self._lock:
            self._cancel_run = cancel
            cancelled = self._cancelled
        if cancelled:
            cancel()

    def _told(
        self, outcome: Reply | Refusal, asked: ServedModel, normalised: classify.Digits | None
    ) -> Reply | Refusal:
        """The model's answer as ours; on the thread that ran the batch."""
        if isinstance(outcome, Refusal):
            return outcome
        classifier = self._classifier
        try:
            answer = classify.answer(classifier.registry, asked, outcome.message)
        except Exception as error:  # a version that is gone already, or breaks its manifest
            return classifier.service.refuse(error, _request_id(self._message), 0, self._caller)
        return outcome._replace(message=response(answer, normalised).SerializeToString())

    def _require_wanted(self) -> None:
        if self._cancelled:
            raise RequestCancelled("the caller went away")
        if time.monotonic() >= self._deadline:
            raise DeadlineExceeded("the deadline passed before the images were decoded")


def response(answer: classify.Answer, normalised: classify.Digits | None) -> pb.ClassifyResponse:
    """As digits.v1 tells it."""
    message = pb.ClassifyResponse(
        model_name=answer.model,
        model_version=answer.version,
        id=answer.request_id,
        classes=answer.classes,
    )
    rows = zip(answer.labels, answer.probabilities.tolist(), answer.prediction_ids, strict=True)
    for row, (label, probabilities, prediction_id) in enumerate(rows):
        message.classifications.add(
            label=label,
            probabilities=probabilities,
            prediction_id=prediction_id,
            normalised=b"" if normalised is None else normalised[row].tobytes(),
        )
    return message


def _parsed(message: bytes) -> pb.ClassifyRequest:
    try:
        return pb.ClassifyRequest.FromString(message)
    except DecodeError:
        raise InvalidInput("the message is no ClassifyRequest") from None


def _request_id(message: bytes) -> str:
    """That of a serialised ClassifyRequest; empty where it is none."""
    try:
        return pb.ClassifyRequest.FromString(message).id
    except DecodeError:
        return ""

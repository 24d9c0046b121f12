"""What the clients do, but for the waiting: each operation as steps that either client takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NoReturn, TypeAlias, cast

import grpc
import numpy as np
from numpy.typing import NDArray

from serving import client_messages as messages
from serving.client_channel import V2_SERVICE
from serving.client_retries import REPEATED, UNDONE, Retries, RetryBudget
from serving.client_steps import (
    FEEDBACK,
    INDEX,
    MODEL_INFER,
    MODEL_METADATA,
    MODEL_READY,
    QUALITY,
    SERVER_METADATA,
    SERVER_READY,
    STATISTICS,
    Ask,
    Method,
    Pause,
    Question,
    Reply,
    Steps,
    closed,
)
from serving.client_types import (
    Classification,
    FeedbackResult,
    Label,
    ModelMetadata,
    ModelQuality,
    ModelState,
    ModelStatistics,
    Prediction,
    RequestFailed,
    ServerMetadata,
)
from serving.pb import digits_pb2
from serving.pb import inference_pb2 as pb

CODE = grpc.StatusCode
Truth: TypeAlias = Label | Sequence[Label] | NDArray[np.integer[Any]]

# Labels in one request; the server takes ten times as many.
FEEDBACK_PER_REQUEST = 1000

# While a version spreads, one of several replicas may not have what another answered with.
_REPLICAS_ASKED = 10
# Of a server that is away, goes away, or is too slow to say; of one that does not have the model.
_NOT_READY = (
    CODE.UNAVAILABLE,
    CODE.CANCELLED,
    CODE.DEADLINE_EXCEEDED,
    CODE.NOT_FOUND,
)
# A server that went away, or says that it will: the next attempt waits until there is one again.
_AWAY = (CODE.UNAVAILABLE, CODE.CANCELLED)
# Seconds between looks at a server that is to become ready.
_LOOK_INTERVAL = 0.1


class Calls:
    """What the operations of one client share: how it asks, its budget, names of classes."""

    def __init__(self, service: str, load_balancing: str, retry: bool) -> None:
        self._raw = service == V2_SERVICE
        self._replicas = 1 if load_balancing == "pick_first" else _REPLICAS_ASKED
        self._retry = retry
        self._budget = RetryBudget()
        self._classes: dict[tuple[str, str], tuple[str, ...]] = {}
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether nothing is to be asked any more."""
        return self._closed

    def close(self) -> None:
        """What is under way ends by RequestFailed, CANCELLED; before the channel is closed."""
        self._closed = True

    def ready(self, model: str, timeout: float) -> Steps[bool]:
        """Whether it is so now: asked once."""
        try:
            return (yield from self._is_ready(model, _deadline(timeout)))
        except RequestFailed as error:
            if self._closed or error.code not in _NOT_READY:
                raise
            return False

    def wait_until_ready(self, model: str, timeout: float) -> Steps[None]:
        """Asks again and again."""
        deadline = _deadline(timeout)
        no = f"model {model!r} is not served" if model else "it has not loaded its models"
        last = ""
        while True:
            try:
                if (yield from self._is_ready(model, deadline)):
                    return
                last = no
            except RequestFailed as error:
                if self._closed or error.code not in (*_NOT_READY, CODE.RESOURCE_EXHAUSTED):
                    raise
                # The last look may only have had no time left: what was heard before says more.
                if not last or error.code is not CODE.DEADLINE_EXCEEDED:
                    last = str(error)
            if _left(deadline) <= _LOOK_INTERVAL:
                words = f"not ready within {timeout:g} s: {last}"
                raise RequestFailed(CODE.DEADLINE_EXCEEDED, words)
            yield Pause(_LOOK_INTERVAL)

    def classify(
        self,
        images: NDArray[np.uint8],
        model: str,
        version: str,
        timeout: float,
        rows_per_request: int,
    ) -> Steps[Classification]:
        """Images (N, 28, 28), some in each request; all by the version that answers first."""
        deadline = _deadline(timeout)
        answers: list[pb.ModelInferResponse] = []
        for start in range(0, len(images), rows_per_request):
            some = images[start : start + rows_per_request]
            request = messages.infer_request(some, model, version, self._raw)
            answers.append((yield from self._ask_model(MODEL_INFER, request, deadline)))
            version = answers[0].model_version  # one answer comes from one version
        tensors = [messages.outputs(answer) for answer in answers]
        indices = np.concatenate([each["labels"] for each in tensors])  # (N,)
        probabilities = np.concatenate([each["probabilities"] for each in tensors])  # (N, C)
        count = probabilities.shape[1]
        classes = yield from self._class_names(model, version, count, deadline)
        labels = tuple(classes[index] for index in indices)
        ids = messages.prediction_ids(answers)
        return Classification(model, version, labels, probabilities, classes, ids)

    def send_feedback(
        self, ids: Sequence[str], labels: Sequence[str], timeout: float
    ) -> Steps[list[FeedbackResult]]:
        """Ids and labels, as many in each request as is fit.

        Only the server that has counted a label knows it again: where another one may be asked
        next, what may have been counted is not repeated.
        """
        if len(ids) != len(labels):
            raise ValueError(f"{len(ids)} prediction ids, but {len(labels)} labels")
        deadline = _deadline(timeout)
        codes = REPEATED if self._replicas == 1 else UNDONE
        results: list[FeedbackResult] = []
        for start in range(0, len(ids), FEEDBACK_PER_REQUEST):
            part = slice(start, start + FEEDBACK_PER_REQUEST)
            request = messages.feedback_request(ids[part], labels[part])
            answer = yield from self._ask(FEEDBACK, request, deadline, codes)
            results += messages.feedback_results(answer)
        return results

    def feedback(
        self, prediction: Prediction, truth: Truth, timeout: float
    ) -> Steps[FeedbackResult]:
        """The label of one."""
        if not isinstance(truth, (str, int, np.integer)):
            raise ValueError("one prediction has one label")
        ids = _ids_of([prediction.prediction_id], prediction)
        (result,) = yield from self.send_feedback(ids, [str(truth)], timeout)
        return result

    def feedback_on_all(
        self, answer: Classification, truth: Truth, timeout: float
    ) -> Steps[list[FeedbackResult]]:
        """The labels of all."""
        if isinstance(truth, (str, int, np.integer)):
            raise ValueError(f"{len(answer)} predictions need as many labels, in a list")
        labels = [str(each) for each in truth]
        ids = _ids_of(answer.prediction_ids, answer)
        return (yield from self.send_feedback(ids, labels, timeout))

    def quality(self, model: str, version: str, timeout: float) -> Steps[list[ModelQuality]]:
        """Of all versions, where none is named."""
        request = digits_pb2.GetQualityRequest(model_name=model, model_version=version)
        answer = yield from self._ask(QUALITY, request, _deadline(timeout))
        return [messages.quality(each) for each in answer.models]

    def server(self, timeout: float) -> Steps[ServerMetadata]:
        """Asked once: it says whether there is a server."""
        request = pb.ServerMetadataRequest()
        reply = yield from self._once(SERVER_METADATA, request, _deadline(timeout))
        return messages.server_metadata(reply)

    def models(self, ready: bool, timeout: float) -> Steps[list[ModelState]]:
        """The index."""
        answer = yield from self._ask(
            INDEX, pb.RepositoryIndexRequest(ready=ready), _deadline(timeout)
        )
        return [messages.model_state(each) for each in answer.models]

    def metadata(self, model: str, version: str, timeout: float) -> Steps[ModelMetadata]:
        """Of one model."""
        request = pb.ModelMetadataRequest(name=model, version=version)
        answer = yield from self._ask_model(MODEL_METADATA, request, _deadline(timeout))
        return messages.model_metadata(answer)

    def statistics(self, model: str, version: str, timeout: float) -> Steps[list[ModelStatistics]]:
        """Of all versions that are served, where none is named."""
        request = pb.ModelStatisticsRequest(name=model, version=version)
        answer = yield from self._ask(STATISTICS, request, _deadline(timeout))
        return [messages.model_statistics(each) for each in answer.model_stats]

    def _is_ready(self, model: str, deadline: float) -> Steps[bool]:
        if model:
            asked = pb.ModelReadyRequest(name=model)
            return (yield from self._once(MODEL_READY, asked, deadline)).ready
        return (yield from self._once(SERVER_READY, pb.ServerReadyRequest(), deadline)).ready

    def _class_names(
        self, model: str, version: str, count: int, deadline: float
    ) -> Steps[tuple[str, ...]]:
        """The model's names for its classes; their numbers where it has none."""
        key = (model, version)
        if key not in self._classes:
            request = pb.ModelMetadataRequest(name=model, version=version)
            answer = yield from self._ask_model(MODEL_METADATA, request, deadline)
            self._classes[key] = tuple(answer.labels) or tuple(map(str, range(count)))
        return self._classes[key]

    def _ask_model(
        self, method: Method[Question, Reply], request: Question, deadline: float
    ) -> Steps[Reply]:
        """The next replicas are asked, too, where one does not have the model or the version."""
        for _ in range(self._replicas - 1):
            try:
                return (yield from self._ask(method, request, deadline))
            except RequestFailed as error:
                if error.code != CODE.NOT_FOUND:
                    raise
        return (yield from self._ask(method, request, deadline))

    def _ask(
        self,
        method: Method[Question, Reply],
        request: Question,
        deadline: float,
        codes: tuple[grpc.StatusCode, ...] = REPEATED,
    ) -> Steps[Reply]:
        """Repeated, where the client does that, until there is an answer or no more time."""
        retries, away = Retries(self._budget, codes), None
        while True:
            try:
                reply = yield from self._once(method, request, deadline, wait=bool(away))
            except RequestFailed as error:
                again = self._retry and not self._closed
                pause = retries.pause(error, _left(deadline)) if again else None
                if pause is None:
                    _fail(error, away)
                away = error if error.code in _AWAY else None
            else:
                self._budget.earn()
                return reply
            yield Pause(pause)

    def _once(
        self,
        method: Method[Question, Reply],
        request: Question,
        deadline: float,
        wait: bool = False,
    ) -> Steps[Reply]:
        if self._closed:
            raise closed()
        return cast(Reply, (yield Ask(method, request, _left(deadline), wait)))


def _fail(error: RequestFailed, away: RequestFailed | None) -> NoReturn:
    """Why there was no server to wait for says more than that it was waited for in vain."""
    if away and error.code is CODE.DEADLINE_EXCEEDED:
        raise away from None
    raise error


def _ids_of(ids: Sequence[str], of: Prediction | Classification) -> Sequence[str]:
    if not ids or not any(ids):
        raise ValueError(f"{of!r} came without prediction ids to tell labels by")
    return ids


def _deadline(timeout: float) -> float:
    return time.monotonic() + timeout


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())

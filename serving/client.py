"""The client to import: images in, labels and probabilities out; true labels in, accuracy out.

Imports nothing of the server. ``python -m serving.client`` is `client_commands`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import cast

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray

from serving.client_channel import V2_SERVICE, Question, Reply, V2Stub, open_channel
from serving.pb import digits_pb2, digits_pb2_grpc
from serving.pb import inference_pb2 as pb

ADDRESS = "localhost:8001"
TIMEOUT = 10.0
# Labels in one request; the server takes ten times as many.
FEEDBACK_PER_REQUEST = 1000

# While a version spreads, one of several replicas may not have what another answered with.
_REPLICAS_ASKED = 10
# Of a server that is away, or too busy to say; of one that does not have the model.
_NOT_READY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.NOT_FOUND,
)
# A tensor's datatype → how its raw contents are read, and where its typed ones are.
_DATATYPES = {"FP32": ("<f4", "fp32_contents"), "INT64": ("<i8", "int64_contents")}


class RequestFailed(Exception):
    """The server refused or could not be reached; `code` is the gRPC status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code


@dataclass(frozen=True, slots=True, eq=False)
class Classification:
    """What one model said about N images."""

    model: str
    version: str
    labels: tuple[str, ...]  # (N,) name of each image's class
    probabilities: NDArray[np.float32]  # (N, C)
    classes: tuple[str, ...]  # (C,) names of the columns
    # (N,) for `Client.send_feedback`; empty where the model or the server gives none
    prediction_ids: tuple[str, ...] = ()


class Outcome(StrEnum):
    """What became of a true label that was sent."""

    COUNTED = "counted"
    REPEATED = "repeated"  # counted before: nothing is left to do
    MALFORMED = "malformed"
    FORGED = "forged"  # of a server with another key
    EXPIRED = "expired"
    UNKNOWN_MODEL = "unknown_model"


@dataclass(frozen=True, slots=True)
class FeedbackResult:
    """The outcome of one label, and why it was not counted."""

    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True)
class Interval:
    """A share, from 0 to 1, and the bounds of its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Drift:
    """How far the requests of a window lie from what the model was trained for."""

    population_stability_index: Mapping[str, float]  # by feature; empty with too few rows
    drifted: bool
    window_seconds: float
    rows: int


@dataclass(frozen=True, slots=True)
class ModelQuality:
    """How right one version was, and what is known of that without labels; None for what is not."""

    model: str
    version: str
    feedback_count: int
    correct_count: int
    accuracy: Interval | None
    confusion: Mapping[tuple[str, str], int]  # by (truth, predicted), those above 0
    holdout_accuracy: float | None
    probe_accuracy: float | None
    probe_passed: bool
    estimated_accuracy: float | None
    estimate_reliable: bool
    drift: Drift | None


class Client:
    """A connection to one server, or to all replicas of one.

    Safe to share between threads; close it, or use it in `with`.
    """

    def __init__(
        self,
        address: str = ADDRESS,
        *,
        service: str = V2_SERVICE,
        load_balancing: str = "pick_first",
        retry: bool = False,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """Connects when first asked.

        `address` is gRPC's: HOST:PORT, `dns:///NAME:PORT` or `ipv4:HOST:PORT,HOST:PORT`.
        `service` is the full name of V2's service there. To another than V2's own, such as
        `client_channel.TORCHSERVE_SERVICE`, tensors are sent typed: raw ones are an extension,
        which TorchServe ignores. Feedback and quality are known to this server only.
        `load_balancing` is a policy of gRPC's: "pick_first" stays with one address of a name;
        "round_robin" sends each request to the next, and so to all replicas that a headless
        service of Kubernetes names. The name is looked up again when a connection ends.
        With `retry`, calls wait for a server that is away, and are repeated where it went away
        or says that it is UNAVAILABLE, all within their timeout: its restart is a slow answer
        then. They fail after the fifth such answer, some 5 seconds after the first. Not so
        `ready`, which tells how it is now.
        With `credentials`, such as `grpc.ssl_channel_credentials(ca)` makes, by TLS.
        """
        self._raw = service == V2_SERVICE
        self._replicas = 1 if load_balancing == "pick_first" else _REPLICAS_ASKED
        self._channel = open_channel(address, service, load_balancing, retry, credentials)
        self._stub = V2Stub(self._channel, service)
        self._digits = digits_pb2_grpc.DigitsStub(self._channel)
        self._classes: dict[tuple[str, str], tuple[str, ...]] = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def ready(self, timeout: float = TIMEOUT, *, model: str = "") -> bool:
        """Whether the server has loaded its models, or this one; none there is not ready.

        TorchServe says that it is ready before its models are: name one there.
        """
        try:
            deadline = time.monotonic() + timeout
            if model:
                return _call(
                    self._stub.ModelReady, pb.ModelReadyRequest(name=model), deadline
                ).ready
            return _call(self._stub.ServerReady, pb.ServerReadyRequest(), deadline).ready
        except RequestFailed as error:
            if error.code in _NOT_READY:
                return False
            raise

    def classify(
        self,
        images: ArrayLike,
        model: str,
        *,
        version: str = "",
        timeout: float = TIMEOUT,
        rows_per_request: int = 64,
    ) -> Classification:
        """Classify uint8 images, (N, 28, 28) or (28, 28), 0 black … 255 white ink.

        `timeout`, in seconds, is for all of them; `rows_per_request` may not exceed the server's
        max_batch_size. Raises ValueError for what are no such images, else RequestFailed.
        """
        array = _images(images)
        deadline = time.monotonic() + timeout
        answers = []
        for start in range(0, len(array), rows_per_request):
            answers.append(
                self._infer(array[start : start + rows_per_request], model, version, deadline)
            )
            version = answers[0].model_version  # one answer comes from one version
        tensors = [_outputs(answer) for answer in answers]
        indices = np.concatenate([each["labels"] for each in tensors])  # (N,)
        probabilities = np.concatenate([each["probabilities"] for each in tensors])  # (N, C)
        classes = self._class_names(model, version, probabilities.shape[1], deadline)
        labels = tuple(classes[index] for index in indices)
        ids = [_prediction_ids(answer) for answer in answers]
        told = tuple(each for some in ids for each in some) if all(ids) else ()
        return Classification(model, version, labels, probabilities, classes, told)

    def send_feedback(
        self, prediction_ids: Sequence[str], labels: Sequence[str], *, timeout: float = TIMEOUT
    ) -> list[FeedbackResult]:
        """Tell the true label of each prediction, by its class's name; what became of each.

        `timeout`, in seconds, is for all of them. A label that is refused fails no other; after
        RequestFailed all may be sent again, as one server counts none twice. Another replica
        knows nothing of that: a label that is repeated there, also by `retry`, counts twice.
        """
        if len(prediction_ids) != len(labels):
            raise ValueError(f"{len(prediction_ids)} prediction ids, but {len(labels)} labels")
        deadline = time.monotonic() + timeout
        items = [
            digits_pb2.Feedback(prediction_id=each, label=label)
            for each, label in zip(prediction_ids, labels, strict=True)
        ]
        results: list[FeedbackResult] = []
        for start in range(0, len(items), FEEDBACK_PER_REQUEST):
            some = items[start : start + FEEDBACK_PER_REQUEST]
            request = digits_pb2.SendFeedbackRequest(feedback=some)
            answer = _call(self._digits.SendFeedback, request, deadline)
            results += [_feedback_result(each) for each in answer.results]
        return results

    def quality(
        self, model: str = "", version: str = "", *, timeout: float = TIMEOUT
    ) -> list[ModelQuality]:
        """How right each version was, by all workers of the server since it started."""
        request = digits_pb2.GetQualityRequest(model_name=model, model_version=version)
        answer = _call(self._digits.GetQuality, request, time.monotonic() + timeout)
        return [_quality(each) for each in answer.models]

    def _infer(
        self, images: NDArray[np.uint8], model: str, version: str, deadline: float
    ) -> pb.ModelInferResponse:
        request = pb.ModelInferRequest(model_name=model, model_version=version)
        tensor = request.inputs.add(name="images", datatype="UINT8", shape=images.shape)
        if self._raw:
            request.raw_input_contents.append(images.tobytes())
        else:
            tensor.contents.uint_contents.extend(images.ravel().tolist())
        return self._call_model(self._stub.ModelInfer, request, deadline)

    def _class_names(
        self, model: str, version: str, count: int, deadline: float
    ) -> tuple[str, ...]:
        """The model's names for its classes; their numbers where it has none."""
        key = (model, version)
        if key not in self._classes:
            request = pb.ModelMetadataRequest(name=model, version=version)
            labels = tuple(self._call_model(self._stub.ModelMetadata, request, deadline).labels)
            self._classes[key] = labels or tuple(map(str, range(count)))
        return self._classes[key]

    def _call_model(
        self,
        method: grpc.UnaryUnaryMultiCallable[Question, Reply],
        request: Question,
        deadline: float,
    ) -> Reply:
        """The next replicas are asked, too, where one does not have the model or the version."""
        for _ in range(self._replicas - 1):
            try:
                return _call(method, request, deadline)
            except RequestFailed as error:
                if error.code != grpc.StatusCode.NOT_FOUND:
                    raise
        return _call(method, request, deadline)


def _call(
    method: grpc.UnaryUnaryMultiCallable[Question, Reply], request: Question, deadline: float
) -> Reply:
    try:
        return method(request, timeout=max(0.0, deadline - time.monotonic()))
    except grpc.RpcError as error:
        call = cast(grpc.Call, error)  # every RpcError that a call raises is one
        raise RequestFailed(call.code(), call.details()) from None


def _images(images: ArrayLike) -> NDArray[np.uint8]:
    array = np.asarray(images)
    if array.ndim == 2:
        array = array[np.newaxis]
    if array.dtype != np.uint8 or array.ndim != 3 or not len(array):
        raise ValueError(
            f"images must be uint8 of shape (N, 28, 28), got {array.dtype} {array.shape}"
        )
    return array


def _outputs(answer: pb.ModelInferResponse) -> dict[str, NDArray[np.generic]]:
    """The output tensors by name; a server may answer with raw or with typed contents."""
    raw = answer.raw_output_contents or [None] * len(answer.outputs)
    return {
        output.name: _tensor(output, content)
        for output, content in zip(answer.outputs, raw, strict=True)
    }


def _tensor(
    output: pb.ModelInferResponse.InferOutputTensor, raw: bytes | None
) -> NDArray[np.generic]:
    dtype, typed = _DATATYPES[output.datatype]
    if raw is None:
        flat = np.array(getattr(output.contents, typed), dtype)
    else:
        flat = np.frombuffer(raw, dtype)
    return flat.reshape(tuple(output.shape))


def _prediction_ids(answer: pb.ModelInferResponse) -> list[str]:
    if "prediction_ids" not in answer.parameters:
        return []
    return answer.parameters["prediction_ids"].string_param.split(",")


def _feedback_result(result: digits_pb2.FeedbackResult) -> FeedbackResult:
    name = digits_pb2.FeedbackResult.Outcome.Name(result.outcome)
    return FeedbackResult(Outcome[name], result.reason)


def _quality(each: digits_pb2.ModelQuality) -> ModelQuality:
    def given(name: str) -> float | None:
        return getattr(each, name) if each.HasField(name) else None  # type: ignore[arg-type]

    share, drift = each.accuracy, each.drift
    return ModelQuality(
        model=each.model_name,
        version=each.model_version,
        feedback_count=each.feedback_count,
        correct_count=each.correct_count,
        accuracy=Interval(share.value, share.low, share.high)
        if each.HasField("accuracy")
        else None,
        confusion={(cell.truth, cell.predicted): cell.count for cell in each.confusion},
        holdout_accuracy=given("holdout_accuracy"),
        probe_accuracy=given("probe_accuracy"),
        probe_passed=each.probe_passed,
        estimated_accuracy=given("estimated_accuracy"),
        estimate_reliable=each.estimate_reliable,
        drift=_drift(drift) if each.HasField("drift") else None,
    )


def _drift(drift: digits_pb2.Drift) -> Drift:
    indices = dict(drift.population_stability_index)
    return Drift(indices, drift.drifted, drift.window_seconds, drift.rows)


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m serving.client COMMAND``; returns the exit status."""
    # Not at the top: it imports this module, which as __main__ is there a second time.
    from serving import client_commands

    return client_commands.main(argv)


if __name__ == "__main__":
    sys.exit(main())

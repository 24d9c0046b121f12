"""The digits.v1 service over grpcio: feedback in, quality out; `classify_rpcs` has the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from serving import quality
from serving.authorization import Asker, Authorization
from serving.calls import MethodHandler, at_most, strict
from serving.config import ServerConfig
from serving.errors import InvalidInput
from serving.feedback import Feedback, Outcome, Result
from serving.metrics import Metrics
from serving.pb import digits_pb2 as pb
from serving.quality import Quality, Version
from serving.registry import ModelRegistry
from serving.servicer import unary
from serving.status import status_of

DIGITS = pb.DESCRIPTOR.services_by_name["Digits"]
# Labels of one SendFeedback; who has more sends several, or a stream.
MOST_FEEDBACK = 10_000
# Feedback streams that may be open at the same time; each takes a thread.
MOST_STREAMS = 128

_OUTCOMES = {outcome: pb.FeedbackResult.Outcome.Value(outcome.name) for outcome in Outcome}


@dataclass(frozen=True, slots=True)
class DigitsServicer:
    """Each unary RPC is a method of its name, as in InferenceServicer."""

    feedback: Feedback
    registry: ModelRegistry
    metrics: Metrics
    config: ServerConfig

    def SendFeedback(
        self, request: pb.SendFeedbackRequest, asker: Asker
    ) -> pb.SendFeedbackResponse:
        """Count the labels; one that is refused fails no other."""
        require_few(len(request.feedback))
        items = [(each.prediction_id, each.label) for each in request.feedback]
        return pb.SendFeedbackResponse(results=map(_result, self.feedback.take(items)))

    def GetQuality(self, request: pb.GetQualityRequest, asker: Asker) -> pb.GetQualityResponse:
        """Of all workers; raises ModelNotFound, or ModelNotReady, where nothing is known of it."""
        sums = self.metrics.sums()
        # With what is suspended, of which this tells why.
        loaded = [(m.manifest.name, m.version) for m in self.registry.loaded if m.tells_classes]
        known = quality.qualities(sums, loaded)
        wanted = {
            key: each
            for key, each in known.items()
            if request.model_name in ("", key[0]) and request.model_version in ("", key[1])
        }
        if request.model_name and not wanted:
            self.registry.get(request.model_name, request.model_version)
        window = self.config.drift_window
        return pb.GetQualityResponse(models=(_told(*each, window) for each in wanted.items()))

    def one(self, item: pb.Feedback) -> pb.FeedbackResult:
        """Count the label of a stream's message."""
        return _result(self.feedback.take([(item.prediction_id, item.label)])[0])


def require_few(feedback: int) -> None:
    """Raise InvalidInput for more labels than one request may have."""
    if feedback > MOST_FEEDBACK:
        raise InvalidInput(f"feedback: at most {MOST_FEEDBACK} in one request, got {feedback}")


def add_digits_service(
    server: grpc.Server, servicer: DigitsServicer, authorization: Authorization
) -> None:
    """Have a server that has not started answer the service's RPCs."""
    handlers: dict[str, MethodHandler] = {
        "SendFeedback": unary(servicer.SendFeedback, pb.SendFeedbackRequest, authorization),
        "StreamFeedback": _stream(servicer),
        "GetQuality": unary(servicer.GetQuality, pb.GetQualityRequest, authorization),
    }
    service = grpc.method_handlers_generic_handler(DIGITS.full_name, handlers)
    server.add_generic_rpc_handlers((service,))


def _stream(servicer: DigitsServicer) -> MethodHandler:
    def results(messages: Iterator[pb.Feedback], context: Any) -> Iterator[pb.FeedbackResult]:
        for message in messages:
            yield _answered(servicer, message, context)

    return strict(
        grpc.stream_stream_rpc_method_handler(
            at_most(MOST_STREAMS, results, "feedback"),
            request_deserializer=pb.Feedback.FromString,
            response_serializer=pb.FeedbackResult.SerializeToString,
        )
    )


def _answered(servicer: DigitsServicer, message: pb.Feedback, context: Any) -> pb.FeedbackResult:
    try:
        return servicer.one(message)
    except Exception as error:
        status, details = status_of(error, rpc="StreamFeedback")
    context.abort(grpc.StatusCode[status], details)
    raise AssertionError("abort raises")


def _result(result: Result) -> pb.FeedbackResult:
    return pb.FeedbackResult(outcome=_OUTCOMES[result.outcome], reason=result.reason)


def _told(version: Version, each: Quality, window_seconds: float) -> pb.ModelQuality:
    drift, accuracy = each.drift, each.accuracy
    return pb.ModelQuality(
        model_name=version[0],
        model_version=version[1],
        feedback_count=each.feedback,
        correct_count=each.correct,
        accuracy=pb.Interval(**accuracy._asdict()) if accuracy else None,
        confusion=(
            pb.ConfusionCell(truth=cell.truth, predicted=cell.predicted, count=cell.count)
            for cell in each.confusion
        ),
        holdout_accuracy=each.holdout_accuracy,
        probe_accuracy=each.probe_accuracy,
        probe_passed=each.probe_passed,
        estimated_accuracy=each.estimated_accuracy,
        estimate_reliable=each.estimate_reliable,
        drift=_drift(drift, window_seconds) if drift else None,
    )


def _drift(drift: quality.Drift, window_seconds: float) -> pb.Drift:
    return pb.Drift(
        population_stability_index=drift.population_stability_index,
        drifted=drift.drifted,
        window_seconds=window_seconds,
        rows=drift.rows,
    )

"""The clients' messages: V2's and digits.v1's requests from arrays and labels, values from answers.

Nothing here is sent: both clients share it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from serving.client_types import (
    Drift,
    FeedbackResult,
    Interval,
    ModelMetadata,
    ModelQuality,
    ModelState,
    ModelStatistics,
    Outcome,
    ServerMetadata,
    Tensor,
)
from serving.pb import digits_pb2
from serving.pb import inference_pb2 as pb

# A tensor's datatype → how its raw contents are read, and where its typed ones are.
_DATATYPES = {"FP32": ("<f4", "fp32_contents"), "INT64": ("<i8", "int64_contents")}
_NANOSECONDS = 1e9


def infer_request(
    images: NDArray[np.uint8], model: str, version: str, raw: bool
) -> pb.ModelInferRequest:
    """Images (N, 28, 28) for a model; as raw contents, which are an extension, or typed ones."""
    request = pb.ModelInferRequest(model_name=model, model_version=version)
    tensor = request.inputs.add(name="images", datatype="UINT8", shape=images.shape)
    if raw:
        request.raw_input_contents.append(images.tobytes())
    else:
        tensor.contents.uint_contents.extend(images.ravel().tolist())
    return request


def outputs(answer: pb.ModelInferResponse) -> dict[str, NDArray[np.generic]]:
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


def prediction_ids(answers: Iterable[pb.ModelInferResponse]) -> tuple[str, ...]:
    """Of all rows of all answers; none where one of the answers has none."""
    ids: list[str] = []
    for answer in answers:
        if "prediction_ids" not in answer.parameters:
            return ()
        ids += answer.parameters["prediction_ids"].string_param.split(",")
    return tuple(ids)


def feedback_request(ids: Sequence[str], labels: Sequence[str]) -> digits_pb2.SendFeedbackRequest:
    """The true label of each prediction."""
    items = [
        digits_pb2.Feedback(prediction_id=each, label=label)
        for each, label in zip(ids, labels, strict=True)
    ]
    return digits_pb2.SendFeedbackRequest(feedback=items)


def feedback_results(answer: digits_pb2.SendFeedbackResponse) -> list[FeedbackResult]:
    """What became of each label."""
    name = digits_pb2.FeedbackResult.Outcome.Name
    return [FeedbackResult(Outcome[name(each.outcome)], each.reason) for each in answer.results]


def quality(each: digits_pb2.ModelQuality) -> ModelQuality:
    """What is known of a version's accuracy."""

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


def server_metadata(answer: pb.ServerMetadataResponse) -> ServerMetadata:
    """Who answered."""
    return ServerMetadata(answer.name, answer.version, tuple(answer.extensions))


def model_state(each: pb.RepositoryIndexResponse.ModelIndex) -> ModelState:
    """One line of the index."""
    return ModelState(each.name, each.version, each.state, each.reason)


def model_metadata(answer: pb.ModelMetadataResponse) -> ModelMetadata:
    """What a model takes and gives."""
    return ModelMetadata(
        answer.name,
        tuple(answer.versions),
        answer.platform,
        tuple(map(_signature, answer.inputs)),
        tuple(map(_signature, answer.outputs)),
        tuple(answer.labels),
        tuple(answer.notes),
    )


def _signature(tensor: pb.ModelMetadataResponse.TensorMetadata) -> Tensor:
    return Tensor(tensor.name, tensor.datatype, tuple(tensor.shape))


def model_statistics(each: pb.ModelStatistics) -> ModelStatistics:
    """A version's sums."""
    requests = each.inference_stats
    return ModelStatistics(
        each.name,
        each.version,
        requests=requests.success.count,
        failures=requests.fail.count,
        rows=each.inference_count,
        executions=each.execution_count,
        seconds=requests.success.ns / _NANOSECONDS,
        queue_seconds=requests.queue.ns / _NANOSECONDS,
    )

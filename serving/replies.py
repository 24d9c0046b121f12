"""What a transport hands to a caller: an answer's bytes, or why there is none. Counts nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

from serving import tensors
from serving.access import Timing
from serving.batch import Tensors
from serving.errors import NoRoom
from serving.pb import inference_pb2 as pb
from serving.prediction_ids import Signer
from serving.predictions import Prediction
from serving.registry import ServedModel
from serving.status import status_of
from serving.tensors import RequestedOutput


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


def response(
    served: ServedModel, request_id: str, outputs: Tensors, requested: Sequence[RequestedOutput]
) -> pb.ModelInferResponse:
    """The requested outputs of a request, still without prediction ids."""
    message = pb.ModelInferResponse(
        model_name=served.manifest.name, model_version=served.version, id=request_id
    )
    tensors.encode_outputs(message, outputs, requested, served.manifest.labels, served.batchable)
    return message


def sign(
    message: pb.ModelInferResponse,
    signer: Signer,
    classes: int,
    predictions: Sequence[Prediction],
) -> None:
    """Add an id for each row's prediction to a response, joined by commas."""
    ids = signer.ids(message.model_name, message.model_version, classes, predictions)
    message.parameters["prediction_ids"].string_param = ",".join(ids)


def refusal(error: Exception, request_id: str, facts: Mapping[str, str]) -> Refusal:
    """How to refuse a request for an error, which is logged with the `facts` where it is ours."""
    status, details = status_of(error, **facts)
    retry_after = error.retry_after if isinstance(error, NoRoom) else None
    return Refusal(status, details, request_id, retry_after)


def request_id(message: bytes) -> str:
    """That of a serialised ModelInferRequest; empty where it is none."""
    try:
        return pb.ModelInferRequest.FromString(message).id
    except DecodeError:
        return ""

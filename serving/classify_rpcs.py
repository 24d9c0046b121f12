"""Classify and StreamClassify of digits.v1 over grpcio, answered as ModelInfer and ModelStreamInfer
are: no thread waits for a batch, and beyond the room calls are refused unread."""

from __future__ import annotations

import grpc

from serving.authorization import Authorization
from serving.calls import MethodHandler
from serving.classifier import Classifier
from serving.digits import DIGITS
from serving.pb import digits_pb2 as pb
from serving.replies import Refusal, Reply
from serving.room import Room
from serving.streaming import Spoken, nested, stream_handler
from serving.transport import infer_handler, receiving_pool, refuse_handler

_CLASSIFY = f"/{DIGITS.full_name}/Classify"
_STREAM = f"/{DIGITS.full_name}/StreamClassify"


class ClassifyHandlers(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # none at run time
    """Both methods, by their paths."""

    def __init__(self, classifier: Classifier, room: Room, authorization: Authorization) -> None:
        self._room = room
        self._decoding = classifier.decoding
        self._pool = receiving_pool("receive-images")
        self._classify = infer_handler(classifier, self._pool, rpc="Classify")
        self._refuse = refuse_handler(classifier, "Classify")
        spoken = Spoken("StreamClassify", _told)
        self._stream = stream_handler(classifier, room, authorization, spoken)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> MethodHandler | None:
        """The handler of one call; None for what is another's."""
        if handler_call_details.method == _STREAM:
            return self._stream
        if handler_call_details.method != _CLASSIFY:
            return None
        received = self._pool.waiting + self._decoding.inside
        return self._refuse if self._room.full(received) or self._pool.full else self._classify

    @property
    def receiving(self) -> bool:
        """Calls were accepted whose digits have not been submitted yet."""
        return bool(self._pool.running or self._pool.waiting or self._decoding.inside)


def _told(outcome: Reply | Refusal) -> bytes:
    """A serialised StreamClassifyResponse."""
    if isinstance(outcome, Reply):
        return nested(1, outcome.message)
    return pb.StreamClassifyResponse(
        response=pb.ClassifyResponse(id=outcome.request_id),
        error_status=outcome.status,
        error_message=outcome.details,
    ).SerializeToString()

"""ModelStreamInfer over grpcio: many requests in flight on one stream, answers as they come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, NamedTuple

import grpc

from serving.authorization import Authorization
from serving.calls import MethodHandler, at_most, caller_of, deadline_of, tokens_of
from serving.errors import ServingError
from serving.inference import Answering, CallerOf
from serving.pb import inference_pb2 as pb
from serving.replies import Refusal, Reply
from serving.room import Room
from serving.tokens import Need

# Streams that may be open at the same time; each takes two threads.
MAX_STREAMS = 128
# Requests of one stream that may be in flight or wait for the caller to read their answers.
STREAM_WINDOW = 128


class Spoken(NamedTuple):
    """What a stream is called, and how it tells an outcome: as a serialised message."""

    rpc: str
    message: Callable[[Reply | Refusal], bytes]


def stream_handler(
    service: Answering, room: Room, authorization: Authorization, spoken: Spoken | None = None
) -> MethodHandler:
    """The handler of ModelStreamInfer, or of a stream that is `spoken` otherwise: answers as they
    come, errors as messages of their own.

    Requests beyond the room are refused, and those that the stream's token does not allow any more.
    """
    way = spoken or Spoken("ModelStreamInfer", _stream_message)

    def answers(messages: Iterator[bytes], context: Any) -> Iterator[bytes]:
        return _Stream(service, room, authorization, way, messages, context).answers()

    return grpc.stream_stream_rpc_method_handler(at_most(MAX_STREAMS, answers, "stream"))


class _Stream:
    """One stream: a thread reads requests and submits them, the caller's takes the answers."""

    def __init__(
        self,
        service: Answering,
        room: Room,
        authorization: Authorization,
        spoken: Spoken,
        messages: Iterator[bytes],
        context: Any,
    ) -> None:
        self._service = service
        self._message = spoken.message
        self._room = room
        self._authorization = authorization
        self._tokens = tokens_of(context.invocation_metadata())
        self._messages = messages
        self._deadline = deadline_of(context)
        who = caller_of(spoken.rpc, context)  # one for all of the stream's requests
        self._caller: CallerOf = lambda: who
        self._answers: SimpleQueue[Reply | Refusal | None] = SimpleQueue()
        self._window = threading.Semaphore(STREAM_WINDOW)
        self._lock = threading.Lock()
        self._cancels: dict[int, Callable[[], None]] = {}
        self._submitted = 0
        self._over = False
        self._parting = False
        self._context = context
        context.add_callback(self._end)

    def answers(self) -> Iterator[bytes]:
        """Serialised ModelStreamInferResponses, until the caller has sent and got all, or the
        server stops: then the stream ends with the request that it heard of too late."""
        threading.Thread(target=self._read, name="stream-reader", daemon=True).start()
        answered, closed = 0, False
        while not closed or answered < self._submitted:
            outcome = self._answers.get()
            if outcome is None:
                closed = True
                continue
            answered += 1
            yield self._message(outcome)
            self._window.release()
        if self._parting:
            self._context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")

    def _read(self) -> None:
        try:
            for number, message in enumerate(self._messages):
                self._window.acquire()
                if self._over:
                    break
                self._submitted = number + 1
                self._parting = self._service.draining
                if refusal := self._refusal(message):
                    self._answers.put(refusal)
                else:
                    self._submit(number, message)
                if self._parting:
                    break
        except Exception:  # grpcio's way to end the requests of a stream that was cancelled
            self._end()
        finally:
            self._answers.put(None)

    def _refusal(self, message: bytes) -> Refusal | None:
        """Of a request that is not to be looked at."""
        if self._parting or self._room.full():
            return self._service.refuse_unread(message, self._caller)
        try:
            self._authorization.require(Need.INFER, self._tokens)
        except ServingError as error:
            return self._service.refuse_unread(message, self._caller, error)
        return None

    def _submit(self, number: int, message: bytes) -> None:
        def respond(outcome: Reply | Refusal) -> None:
            self._room.streamed(-1)
            with self._lock:
                self._cancels.pop(number, None)
            self._answers.put(outcome)

        with self._lock:
            self._cancels[number] = _nothing
        self._room.streamed(1)
        cancel = self._service.submit(message, self._deadline, respond, self._caller)
        with self._lock:
            if number in self._cancels:
                self._cancels[number] = cancel
        if self._over:
            cancel()

    def _end(self) -> None:
        """The stream is over, in whatever way: nobody reads answers any more."""
        self._over = True
        with self._lock:
            cancels = list(self._cancels.values())
        for cancel in cancels:
            cancel()
        self._window.release()


def _stream_message(outcome: Reply | Refusal) -> bytes:
    """A serialised ModelStreamInferResponse."""
    if isinstance(outcome, Refusal):
        response = pb.ModelInferResponse(id=outcome.request_id)
        return pb.ModelStreamInferResponse(
            error_message=outcome.details, infer_response=response
        ).SerializeToString()
    # Field 2, of bytes: what was serialised once need not be parsed for that.
    return nested(2, outcome.message)


def nested(field: int, message: bytes) -> bytes:
    """A message that holds another, which is serialised already, as its field of that number."""
    return bytes([field << 3 | 2]) + _varint(len(message)) + message


def _varint(number: int) -> bytes:
    """https://protobuf.dev/programming-guides/encoding/#varints"""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _nothing() -> None:
    """Cancels what has not been submitted yet."""

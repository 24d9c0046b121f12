"""The client to import: images in, labels and probabilities out; true labels in, accuracy out.

Imports nothing of the server. ``python -m serving.client`` is `client_commands`; for asyncio there
is `async_client`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, overload

import grpc
import numpy as np
from numpy.typing import NDArray

from serving.client_calls import Calls, Truth
from serving.client_channel import ADDRESS, TIMEOUT, V2_SERVICE, Tls, target
from serving.client_images import Images, images_of
from serving.client_steps import Ask, Method, Pause, Result, Steps, closed, failed
from serving.client_types import (
    Classification,
    Drift,
    FeedbackResult,
    Interval,
    Label,
    ModelMetadata,
    ModelQuality,
    ModelState,
    ModelStatistics,
    Outcome,
    Prediction,
    RequestFailed,
    ServerMetadata,
)

# What a caller needs beside the client comes from here, too.
__all__ = [
    "ADDRESS",
    "TIMEOUT",
    "Classification",
    "Client",
    "Drift",
    "FeedbackResult",
    "Interval",
    "ModelMetadata",
    "ModelQuality",
    "ModelState",
    "ModelStatistics",
    "Outcome",
    "Prediction",
    "RequestFailed",
    "ServerMetadata",
    "Tls",
    "main",
]


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
        retry: bool = True,
        credentials: grpc.ChannelCredentials | None = None,
        tls: Tls | bool = False,
        token: str | None = None,
        allow_plain_token: bool = False,
    ) -> None:
        """Connects when first asked.

        `address` is gRPC's: HOST:PORT, `dns:///NAME:PORT` or `ipv4:HOST:PORT,HOST:PORT`.
        `service` is the full name of V2's service there. To another than V2's own, such as
        `client_channel.TORCHSERVE_SERVICE`, tensors are sent typed: raw ones are an extension,
        which TorchServe ignores. Feedback and quality are known to this server only.
        `load_balancing` is a policy of gRPC's: "pick_first" stays with one address of a name;
        "round_robin" sends each request to the next, and so to all replicas that a headless
        service of Kubernetes names. The name is looked up again when a connection ends.
        With `retry`, calls are repeated where the server is away, is UNAVAILABLE or has no room
        (RESOURCE_EXHAUSTED), all within their timeout: its restart is a slow answer then. Pauses
        are random and grow, and are no shorter than the server asks for; `client_retries` says how
        they are kept from making an overload worse. Not so `ready` and `server`, which tell how it
        is now.
        By TLS where `tls` is True, as `Tls(ca=...)` says, or with `credentials`, such as
        `grpc.ssl_channel_credentials(ca)` makes.
        A `token` is sent as `authorization: Bearer TOKEN`. ValueError where that would leave this
        machine in plain text; `allow_plain_token` is for networks that encrypt by themselves.
        """
        where = target(address, load_balancing, credentials, tls, token, allow_plain_token)
        self._address = address
        self._service = service
        self._metadata = where.metadata()
        self._calls = Calls(service, load_balancing, retry)
        self._channel = where.channel()
        self._methods: dict[str, grpc.UnaryUnaryMultiCallable[Any, Any]] = {}

    def __repr__(self) -> str:
        return f"<Client of {self._address}>"

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
        """Close the connection; calls of other threads fail by RequestFailed, CANCELLED."""
        self._calls.close()
        self._channel.close()

    def ready(self, timeout: float = TIMEOUT, *, model: str = "") -> bool:
        """Whether the server has loaded its models, or this one; none there is not ready.

        TorchServe says that it is ready before its models are: name one there.
        """
        return self._take(self._calls.ready(model, timeout))

    def wait_until_ready(self, timeout: float = 60.0, *, model: str = "") -> None:
        """Until `ready`; RequestFailed, DEADLINE_EXCEEDED, where it is not within `timeout`."""
        self._take(self._calls.wait_until_ready(model, timeout))

    def classify(
        self,
        images: Images,
        model: str,
        *,
        version: str = "",
        timeout: float = TIMEOUT,
        rows_per_request: int = 64,
    ) -> Classification:
        """Classify images of one digit each.

        Arrays, uint8 (N, 28, 28) or (28, 28), 0 black … 255 white ink, are sent as they are. Paths
        and bytes of PNG and JPEG files, and Pillow's images, one or a list of them, of any size
        and colours, are made what MNIST would have held first, by `digit_image`, here.
        `timeout`, in seconds, is for all requests together; `rows_per_request` may not exceed the
        server's max_batch_size. Raises ValueError for what are no such images, of which ImageError
        names an image without a digit; OSError where a file cannot be opened; else RequestFailed.
        """
        array = images_of(images)
        return self._take(self._calls.classify(array, model, version, timeout, rows_per_request))

    @overload
    def feedback(
        self, prediction: Prediction, truth: Label, *, timeout: float = TIMEOUT
    ) -> FeedbackResult: ...

    @overload
    def feedback(
        self,
        prediction: Classification,
        truth: Sequence[Label] | NDArray[np.integer[Any]],
        *,
        timeout: float = TIMEOUT,
    ) -> list[FeedbackResult]: ...

    def feedback(
        self,
        prediction: Prediction | Classification,
        truth: Truth,
        *,
        timeout: float = TIMEOUT,
    ) -> FeedbackResult | list[FeedbackResult]:
        """Tell the true class of a prediction, such as "7" or 7; or of all, in their order.

        ValueError where they came without prediction ids; else as `send_feedback`.
        """
        if isinstance(prediction, Prediction):
            return self._take(self._calls.feedback(prediction, truth, timeout))
        return self._take(self._calls.feedback_on_all(prediction, truth, timeout))

    def send_feedback(
        self, prediction_ids: Sequence[str], labels: Sequence[str], *, timeout: float = TIMEOUT
    ) -> list[FeedbackResult]:
        """Tell the true label of each prediction, by its class's name; what became of each.

        `timeout`, in seconds, is for all of them. A label that is refused fails no other; after
        RequestFailed all may be sent again, as one server counts none twice. Another replica
        knows nothing of that, and counts it twice: with "round_robin", `retry` repeats labels
        only where the server had no room to count them.
        """
        return self._take(self._calls.send_feedback(prediction_ids, labels, timeout))

    def quality(
        self, model: str = "", version: str = "", *, timeout: float = TIMEOUT
    ) -> list[ModelQuality]:
        """How right each version was, by all workers of the server since it started."""
        return self._take(self._calls.quality(model, version, timeout))

    def server(self, *, timeout: float = TIMEOUT) -> ServerMetadata:
        """Who answers there; asked once, so that a server that is away is known at once."""
        return self._take(self._calls.server(timeout))

    def models(self, *, ready: bool = False, timeout: float = TIMEOUT) -> list[ModelState]:
        """Which versions the server knows, whether it serves them, and why not; or only those
        that are READY. TorchServe does not tell."""
        return self._take(self._calls.models(ready, timeout))

    def metadata(self, model: str, version: str = "", *, timeout: float = TIMEOUT) -> ModelMetadata:
        """What a model takes and gives; of its newest version, where none is named."""
        return self._take(self._calls.metadata(model, version, timeout))

    def statistics(
        self, model: str = "", version: str = "", *, timeout: float = TIMEOUT
    ) -> list[ModelStatistics]:
        """What each version did since the server started."""
        return self._take(self._calls.statistics(model, version, timeout))

    def _take(self, steps: Steps[Result]) -> Result:
        """All steps, in this thread."""
        try:
            step = next(steps)
            while True:
                try:
                    reply = self._do(step)
                except RequestFailed as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            result: Result = end.value
            return result

    def _do(self, step: Ask | Pause) -> object:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        method = self._method(step.method)
        try:
            return method(
                step.request,
                timeout=step.timeout,
                metadata=self._metadata,
                wait_for_ready=step.wait,
            )
        except grpc.RpcError as error:
            raise failed(error) from None
        except ValueError:  # what gRPC says of a channel that is closed
            if self._calls.closed:
                raise closed() from None
            raise

    def _method(self, method: Method[Any, Any]) -> grpc.UnaryUnaryMultiCallable[Any, Any]:
        path = method.path(self._service)
        if path not in self._methods:
            self._methods[path] = self._channel.unary_unary(
                path, method.question.SerializeToString, method.reply.FromString
            )
        return self._methods[path]


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m serving.client COMMAND``; returns the exit status."""
    # Not at the top: it imports this module, which as __main__ is there a second time.
    from serving import client_commands

    return client_commands.main(argv)


if __name__ == "__main__":
    sys.exit(main())

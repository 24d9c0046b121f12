"""The client to import: images in, labels and probabilities out. Imports nothing of the server.

``python -m serving.client classify FILE... --model NAME`` does the same for image files.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar, cast

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray

import digit_image
from serving.pb import inference_pb2 as pb
from serving.pb import inference_pb2_grpc as pb_grpc

ADDRESS = "localhost:8001"
TIMEOUT = 10.0

Question = TypeVar("Question")
Reply = TypeVar("Reply")


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


class Client:
    """A connection to one server. Safe to share between threads; close it, or use it in `with`."""

    def __init__(self, address: str = ADDRESS) -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(address, options)
        self._stub = pb_grpc.GRPCInferenceServiceStub(self._channel)
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

    def ready(self, timeout: float = TIMEOUT) -> bool:
        """Whether the server has loaded its models; one that is not there is not ready."""
        try:
            deadline = time.monotonic() + timeout
            return _call(self._stub.ServerReady, pb.ServerReadyRequest(), deadline).ready
        except RequestFailed as error:
            if error.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
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
        return Classification(model, version, labels, probabilities, classes)

    def _infer(
        self, images: NDArray[np.uint8], model: str, version: str, deadline: float
    ) -> pb.ModelInferResponse:
        request = pb.ModelInferRequest(
            model_name=model, model_version=version, raw_input_contents=[images.tobytes()]
        )
        request.inputs.add(name="images", datatype="UINT8", shape=images.shape)
        return _call(self._stub.ModelInfer, request, deadline)

    def _class_names(
        self, model: str, version: str, count: int, deadline: float
    ) -> tuple[str, ...]:
        """The model's names for its classes; their numbers where it has none."""
        key = (model, version)
        if key not in self._classes:
            request = pb.ModelMetadataRequest(name=model, version=version)
            labels = tuple(_call(self._stub.ModelMetadata, request, deadline).labels)
            self._classes[key] = labels or tuple(map(str, range(count)))
        return self._classes[key]


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
    dtypes = {"FP32": "<f4", "INT64": "<i8"}
    return {
        output.name: np.frombuffer(raw, dtypes[output.datatype]).reshape(tuple(output.shape))
        for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }


def main(argv: Sequence[str] | None = None) -> int:
    """0: classified; 1: the server failed or was not there; 2: a file or an option is at fault."""
    arguments = _parser().parse_args(argv)
    try:
        images = [_read(file) for file in arguments.files]
        with Client(arguments.address) as client:
            answer = client.classify(np.stack(images), arguments.model, timeout=arguments.timeout)
    except (digit_image.ImageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RequestFailed as error:
        print(f"error: {arguments.address}: {error}", file=sys.stderr)
        return 1
    for file, label, row in zip(arguments.files, answer.labels, answer.probabilities, strict=True):
        print(f"{file}\t{label}\t{row.max():.4f}")
    return 0


def _read(file: Path) -> NDArray[np.uint8]:
    """One file as MNIST would have held it; ImageError names the file."""
    try:
        return digit_image.normalise(digit_image.read_image(file))
    except digit_image.ImageError as error:
        text = str(error)
        raise digit_image.ImageError(text if str(file) in text else f"{file}: {text}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving.client", description="Ask a running server."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = "print file, label and probability for each image"
    command = commands.add_parser("classify", help=text, description=text)
    command.add_argument("files", nargs="+", type=Path, metavar="FILE", help="PNG or JPEG")
    command.add_argument("--model", required=True, help="name of the model")
    command.add_argument("--address", default=ADDRESS, help="host:port [%(default)s]")
    command.add_argument(
        "--timeout", type=float, default=TIMEOUT, help="seconds for the answer [%(default)g]"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

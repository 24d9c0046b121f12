"""Images of digits in, a ModelInferRequest out; its answer back as labels and probabilities.

What digits.v1's Classify and HTTP's share; knows no transport.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from digit_image import MAX_PIXELS, SIDE, ImageError, normalise, read_digit
from image_file import pixel_count
from model_repository import Manifest
from serving.datatypes import DATATYPES, decode_raw
from serving.errors import InvalidInput
from serving.pb import digits_pb2
from serving.pb import inference_pb2 as pb
from serving.predictions import class_output
from serving.registry import ModelRegistry, ServedModel

IMAGES, PROBABILITIES, LABELS = "images", "probabilities", "labels"

Digits = NDArray[np.uint8]  # (N, 28, 28), 0 black ... 255 white ink

Made = TypeVar("Made")


def _wanted() -> None:
    """Of what is always wanted."""


class Answer(NamedTuple):
    """What a model said of the images of one request, one entry for each."""

    model: str
    version: str
    request_id: str
    classes: tuple[str, ...]
    labels: list[str]  # empty for a class that the model has no name for
    probabilities: NDArray[np.float32]  # (N, classes)
    prediction_ids: list[str]  # empty where the server gives none


def takes_digits(manifest: Manifest) -> bool:
    """Whether it can be asked: one input of MNIST's images, probabilities of named classes out."""
    inputs = [(each.name, each.datatype, tuple(each.shape)) for each in manifest.inputs]
    classes = len(manifest.labels)
    return bool(
        inputs == [(IMAGES, "UINT8", (-1, SIDE, SIDE))]
        and classes
        and any(
            each.name == PROBABILITIES
            and each.datatype.startswith("FP")
            and tuple(each.shape) in ((-1, classes), (-1, -1))
            for each in manifest.outputs
        )
    )


def digit_model(registry: ModelRegistry, name: str, version: str = "") -> ServedModel:
    """A version to ask; raises what ModelRegistry.get does, and InvalidInput for one of others."""
    served = registry.get(name, version)
    if not takes_digits(served.manifest):
        raise InvalidInput(
            f"model {name!r} takes no digits: that has one input {IMAGES!r}, UINT8"
            f" [-1, {SIDE}, {SIDE}], an output {PROBABILITIES!r}, and class labels"
        )
    return served


def digit_models(registry: ModelRegistry) -> list[ServedModel]:
    """The latest version of each that takes digits: those of more classes first, then those that
    are more accurate."""
    latest = [served for (_, version), served in registry.routes.items() if not version]
    return sorted((each for each in latest if takes_digits(each.manifest)), key=_rank)


def digits_of(
    images: Sequence[digits_pb2.Image], most: int, require_wanted: Callable[[], None] = _wanted
) -> Digits:
    """What MNIST would have held; InvalidInput says which image is none of a digit, and why.

    All together have as many pixels as one may. `require_wanted` is called before each of them, and
    raises where nobody waits for the answer any more.
    """
    if not 1 <= len(images) <= most:
        raise InvalidInput(f"images: 1 to {most} in one request, got {len(images)}")
    digits, pixels = [], 0
    for number, image in enumerate(images):
        require_wanted()
        name = f"images[{number}]"
        more: int = _named(name, _pixel_count, image)
        pixels += more
        if more <= MAX_PIXELS < pixels:  # one that is too large by itself is told so
            raise InvalidInput(f"{name}: with it, the request has more than {MAX_PIXELS} pixels")
        digits.append(_named(name, _digit, image))
    return np.stack(digits)


def digit_of_file(data: bytes) -> Digits:
    """The same of one PNG or JPEG file: (1, 28, 28)."""
    return _named("image", read_digit, data)[np.newaxis]


def digit_of_pixels(pixels: NDArray[np.uint8]) -> Digits:
    """The same of pixels, (H, W) or (H, W, channels)."""
    return _named("pixels", _digit_of_array, pixels)[np.newaxis]


def question(
    served: ServedModel, digits: Digits, *, version: str = "", request_id: str = ""
) -> bytes:
    """A serialised ModelInferRequest for what an answer is made of."""
    request = pb.ModelInferRequest(
        model_name=served.manifest.name,
        model_version=version,
        id=request_id,
        raw_input_contents=[digits.tobytes()],
    )
    request.inputs.add(name=IMAGES, datatype="UINT8", shape=digits.shape)
    request.outputs.add(name=PROBABILITIES)
    if _gives_labels(served.manifest):
        request.outputs.add(name=LABELS)
    return request.SerializeToString()


def answer(registry: ModelRegistry, asked: ServedModel, message: bytes) -> Answer:
    """What a serialised ModelInferResponse to a `question` says.

    Another version than `asked` may have given it, as the latest changes.
    """
    response = pb.ModelInferResponse.FromString(message)
    name, version = response.model_name, response.model_version
    manifest = (asked if asked.version == version else registry.get(name, version)).manifest
    outputs = _arrays(response)
    probabilities = outputs[PROBABILITIES].astype(np.float32, copy=False)
    highest = outputs.get(LABELS, probabilities.argmax(axis=1))
    classes = manifest.labels
    ids = response.parameters["prediction_ids"].string_param
    return Answer(
        name,
        version,
        response.id,
        classes,
        [classes[i] if 0 <= i < len(classes) else "" for i in highest.tolist()],
        probabilities,
        ids.split(",") if ids else [""] * len(probabilities),
    )


def _rank(served: ServedModel) -> tuple[float, float, str]:
    manifest = served.manifest
    return -len(manifest.labels), -(manifest.accuracy or 0.0), manifest.name


def _named(name: str, make: Callable[[Any], Made], source: Any) -> Made:
    try:
        return make(source)
    except ImageError as fault:
        raise InvalidInput(f"{name}: {fault}") from None


def _pixel_count(image: digits_pb2.Image) -> int:
    """As it is declared; whether that is right is seen when it is decoded."""
    if image.WhichOneof("content") == "encoded":
        return pixel_count(image.encoded)
    return image.pixels.height * image.pixels.width


def _digit(image: digits_pb2.Image) -> Digits:
    content = image.WhichOneof("content")
    if content == "encoded":
        return read_digit(image.encoded)
    if content == "pixels":
        return _digit_of_array(_unpacked(image.pixels))
    raise ImageError("has neither encoded nor pixels")


def _unpacked(pixels: digits_pb2.Pixels) -> NDArray[np.uint8]:
    """(H, W) or (H, W, channels), a view of the message's bytes."""
    height, width, channels = pixels.height, pixels.width, pixels.channels or 1
    if channels not in (1, 3, 4):
        raise ImageError(f"channels is {channels}, expected 1, 3 or 4")
    if len(pixels.data) != height * width * channels:
        raise ImageError(
            f"{height}x{width}x{channels} takes {height * width * channels} bytes of data,"
            f" got {len(pixels.data)}"
        )
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.frombuffer(pixels.data, np.uint8).reshape(shape)


def _digit_of_array(pixels: NDArray[np.uint8]) -> Digits:
    if pixels.size and pixels.shape[0] * pixels.shape[1] > MAX_PIXELS:
        height, width = pixels.shape[:2]
        raise ImageError(f"{width}x{height} is more than {MAX_PIXELS} pixels")
    return normalise(pixels)


def _gives_labels(manifest: Manifest) -> bool:
    """Whether it says itself which class it is, so that the label is the prediction id's."""
    spec = class_output(manifest)
    return spec is not None and spec.name == LABELS


def _arrays(response: pb.ModelInferResponse) -> dict[str, NDArray[np.generic]]:
    described: Iterable[pb.ModelInferResponse.InferOutputTensor] = response.outputs
    return {
        each.name: decode_raw(each.name, DATATYPES[each.datatype], tuple(each.shape), raw)
        for each, raw in zip(described, response.raw_output_contents, strict=True)
    }

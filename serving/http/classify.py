"""/v1/classify: an image of a digit in, what each model says of it out."""

from __future__ import annotations

import asyncio
import functools
import json
import math
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from digit_image import SIDE
from serving import classify, replies
from serving.datatypes import DATATYPES
from serving.errors import InvalidInput, ModelNotReady, ServingError
from serving.http import tensors_json
from serving.http.asking import Outcome, admit, ask, body, counted, unless_gone
from serving.http.services import Services
from serving.http.status import Refused, answering
from serving.registry import ModelRegistry, ServedModel
from serving.replies import Refusal, Reply

# Of pixels as JSON: parsing holds Python's lock, at 20 ms per MiB. Who has more sends a file.
MOST_JSON = 1 << 20

RPC = "Classify"  # as what logs and traces call it

Make = Callable[[], classify.Digits]
Told = tuple[classify.Answer, Reply] | Refusal


def routes(services: Services) -> list[BaseRoute]:
    """The paths of this part."""
    return [
        Route("/v1/classify", answering(functools.partial(_classify, services)), methods=["POST"])
    ]


async def _classify(services: Services, request: Request) -> Response:
    started = time.monotonic()
    admit(services, request, RPC)
    name = request.query_params.get("model", "")
    version = request.query_params.get("version", "")
    registry = services.classifier.registry
    with counted(services, request, RPC):
        models = _asked(registry, name, version)
        digit = await _digit(services, request)
    decoded = time.monotonic()
    questions = [classify.question(each, digit, version=version) for each in models]
    outcomes = await ask(services, request, questions, RPC)
    said = [told(registry, *each) for each in zip(models, outcomes, strict=True)]
    if name and isinstance(said[0], Refusal):
        raise Refused(said[0])
    answers = [_shown(*each) for each in zip(models, said, strict=True)]
    seconds = {"decode": decoded - started, "total": time.monotonic() - started}
    pixels = {"height": SIDE, "width": SIDE, "pixels": digit.ravel().tolist()}
    return JSONResponse({"normalised": pixels, "answers": answers, "seconds": seconds})


def _asked(registry: ModelRegistry, name: str, version: str) -> list[ServedModel]:
    """The model that was named, or all that take digits."""
    if name:
        return [classify.digit_model(registry, name, version)]
    if version:
        raise InvalidInput("version is given without model")
    models = classify.digit_models(registry)
    if not models:
        raise ModelNotReady("no model that takes digits is served")
    return models


async def _digit(services: Services, request: Request) -> classify.Digits:
    """The image as MNIST would have held it, (1, 28, 28); made on a decoding thread."""
    if _is_json(request):
        content = await body(services, request, min(MOST_JSON, services.config.max_message_bytes))
        work: Make = functools.partial(_digit_of_json, content)
    else:
        work = functools.partial(classify.digit_of_file, await body(services, request))
    digit = asyncio.wrap_future(services.classifier.decoding.submit(work))
    return await unless_gone(request, digit)


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json"


def _digit_of_json(content: bytes) -> classify.Digits:
    try:
        given = json.loads(content)
    except (ValueError, RecursionError):
        raise InvalidInput("the body is not JSON") from None
    if not isinstance(given, dict) or list(given) != ["pixels"]:
        raise InvalidInput('the body is not {"pixels": [[...], ...]}')
    return classify.digit_of_pixels(_pixels(given["pixels"]))


def _pixels(rows: object) -> NDArray[np.uint8]:
    """Nested lists as an array; InvalidInput where they are no rows of whole numbers to 255.

    Each element is looked at before numpy is: it would make all of them as long as the longest.
    """
    shape = _shape(rows)
    try:
        if not isinstance(rows, list) or len(shape) not in (2, 3) or not math.prod(shape):
            raise InvalidInput("no rows of pixels")
        raw = tensors_json.raw_bytes("pixels", DATATYPES["UINT8"], shape, rows)
    except InvalidInput:
        raise InvalidInput(
            "pixels are rows of equal length, each pixel a whole number from 0 to 255,"
            " or 3 or 4 of them"
        ) from None
    return np.frombuffer(raw, np.uint8).reshape(shape)


def _shape(rows: object) -> list[int]:
    """That of nested lists whose first ones are as long as all of them; of up to three."""
    shape: list[int] = []
    while isinstance(rows, list) and len(shape) < 3:
        shape.append(len(rows))
        rows = rows[0] if rows else None
    return shape


def told(registry: ModelRegistry, asked: ServedModel, outcome: Outcome) -> Told:
    """What a model said, and at what cost; or why it did not."""
    if isinstance(outcome, Refusal):
        return outcome
    try:
        return classify.answer(registry, asked, outcome.message), outcome
    except ServingError as error:  # the version that answered is gone already
        return replies.refusal(error, "", {})


def _shown(asked: ServedModel, said: Told) -> dict[str, object]:
    if isinstance(said, Refusal):
        return {
            "model": asked.manifest.name,
            "version": asked.version,
            "status": said.status,
            "error": said.details,
        }
    answer, reply = said
    return {
        "model": answer.model,
        "version": answer.version,
        "label": answer.labels[0],
        "classes": list(answer.classes),
        "probabilities": _numbers(answer.probabilities[0]),
        "prediction_id": answer.prediction_ids[0],
        **_cost(reply),
    }


def _cost(reply: Reply) -> dict[str, object]:
    queue, stages = reply.timing.queue_seconds, reply.timing.stages
    computed = stages.compute_infer_seconds
    around = stages.compute_input_seconds + stages.compute_output_seconds
    seconds = {"queue": queue, "compute": computed, "total": queue + computed + around}
    return {"seconds": seconds, "batch_size": stages.rows}


def _numbers(row: NDArray[np.float32]) -> list[float | None]:
    """JSON has no NaN and no infinity."""
    return [float(each) if np.isfinite(each) else None for each in row]

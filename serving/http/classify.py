"""/v1/classify: an image of a digit in, what each model says of it out."""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from digit_image import SIDE
from serving import classify
from serving.errors import InvalidInput, ModelNotReady
from serving.http.asking import Outcome, ask, body
from serving.http.services import Services
from serving.http.status import Refused, answering
from serving.registry import ModelRegistry, ServedModel
from serving.replies import Refusal, Reply

# Of pixels as JSON: parsing holds Python's lock, at 20 ms per MiB. Who has more sends a file.
MOST_JSON = 1 << 20

Make = Callable[[], classify.Digits]


def routes(services: Services) -> list[BaseRoute]:
    """The paths of this part."""
    return [
        Route("/v1/classify", answering(functools.partial(_classify, services)), methods=["POST"])
    ]


async def _classify(services: Services, request: Request) -> Response:
    started = time.monotonic()
    name = request.query_params.get("model", "")
    version = request.query_params.get("version", "")
    models = _asked(services.classifier.registry, name, version)
    digit = await _digit(services, request)
    decoded = time.monotonic()
    questions = [classify.question(each, digit, version=version) for each in models]
    outcomes = await ask(services, request, questions, "Classify")
    if name and isinstance(outcomes[0], Refusal):
        raise Refused(outcomes[0])
    registry = services.classifier.registry
    answers = [_told(registry, *each) for each in zip(models, outcomes, strict=True)]
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
    return await asyncio.wrap_future(services.classifier.decoding.submit(work))


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
    """Nested lists as an array; InvalidInput where they are no rows of whole numbers to 255."""
    try:
        array = np.array(rows) if isinstance(rows, list) else np.empty(0, object)
    except (ValueError, RecursionError):  # rows of different lengths
        array = np.empty(0, object)
    whole = array.dtype.kind in "iu" and array.ndim in (2, 3) and array.size > 0
    if not whole or array.min() < 0 or array.max() > 255:
        raise InvalidInput(
            "pixels are rows of equal length, each pixel a whole number from 0 to 255,"
            " or 3 or 4 of them"
        )
    return array.astype(np.uint8)


def _told(registry: ModelRegistry, asked: ServedModel, outcome: Outcome) -> dict[str, object]:
    if isinstance(outcome, Refusal):
        return {
            "model": asked.manifest.name,
            "version": asked.version,
            "status": outcome.status,
            "error": outcome.details,
        }
    answer = classify.answer(registry, asked, outcome.message)
    return {
        "model": answer.model,
        "version": answer.version,
        "label": answer.labels[0],
        "classes": list(answer.classes),
        "probabilities": _numbers(answer.probabilities[0]),
        "prediction_id": answer.prediction_ids[0],
        **_cost(outcome),
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

"""/v1/feedback and /v1/quality: true labels in, how right each version was out.

By the very methods that answer gRPC, on threads: they read and lock what all workers share.
"""

from __future__ import annotations

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from serving.authorization import Asker
from serving.digits import require_few
from serving.errors import InvalidInput
from serving.http.asking import asker_of
from serving.http.json_body import json_body
from serving.http.services import Services
from serving.http.status import answering
from serving.http.strict_json import kind_of
from serving.pb import digits_pb2 as pb


def routes(services: Services) -> list[BaseRoute]:
    """The paths of this part."""

    async def feedback(request: Request) -> Response:
        sent = await json_body(services, request)
        told = await run_in_threadpool(_take, services, sent, asker_of(request))
        return JSONResponse(told)

    async def quality(request: Request) -> Response:
        asked = request.query_params
        message = pb.GetQualityRequest(
            model_name=asked.get("model", ""), model_version=asked.get("version", "")
        )
        told = await run_in_threadpool(_quality, services, message, asker_of(request))
        return JSONResponse(told)

    return [
        Route("/v1/feedback", answering(feedback), methods=["POST"]),
        Route("/v1/quality", answering(quality), methods=["GET"]),
    ]


def _take(services: Services, sent: object, asker: Asker) -> dict[str, Any]:
    request = pb.SendFeedbackRequest(feedback=_items(sent))
    results = services.digits.SendFeedback(request, asker).results
    name = pb.FeedbackResult.Outcome.Name
    return {"results": [{"outcome": name(each.outcome), "reason": each.reason} for each in results]}


def _items(sent: object) -> list[pb.Feedback]:
    if not isinstance(sent, dict):
        raise _expected("the body", "an object with feedback", sent)
    items = sent.get("feedback")
    if not isinstance(items, list):
        raise _expected("feedback", "an array", items, "feedback" in sent)
    require_few(len(items))
    return [_item(f"feedback[{index}]", each) for index, each in enumerate(items)]


def _item(where: str, sent: object) -> pb.Feedback:
    if not isinstance(sent, dict):
        raise _expected(where, "an object with prediction_id and label", sent)
    texts = {name: _text(f"{where}.{name}", name, sent) for name in ("prediction_id", "label")}
    return pb.Feedback(**texts)


def _text(where: str, name: str, sent: dict[str, object]) -> str:
    text = sent.get(name)
    if not isinstance(text, str):
        raise _expected(where, "a text", text, name in sent)
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can escape one by itself
        raise InvalidInput(f"{where}: expected Unicode, got half of a surrogate pair") from None
    return text


def _expected(where: str, what: str, sent: object, there: bool = True) -> InvalidInput:
    return InvalidInput(f"{where}: expected {what}, got {kind_of(sent) if there else 'nothing'}")


def _quality(services: Services, request: pb.GetQualityRequest, asker: Asker) -> dict[str, Any]:
    models = services.digits.GetQuality(request, asker).models
    return {"models": [_told(each) for each in models]}


def _told(each: pb.ModelQuality) -> dict[str, Any]:
    return {
        "model": each.model_name,
        "version": each.model_version,
        "feedback_count": each.feedback_count,
        "correct_count": each.correct_count,
        "accuracy": _interval(each.accuracy) if each.HasField("accuracy") else None,
        "confusion": [
            {"truth": cell.truth, "predicted": cell.predicted, "count": cell.count}
            for cell in each.confusion
        ],
        "holdout_accuracy": each.holdout_accuracy if each.HasField("holdout_accuracy") else None,
        "probe_accuracy": each.probe_accuracy if each.HasField("probe_accuracy") else None,
        "probe_passed": each.probe_passed,
        "estimated_accuracy": (
            each.estimated_accuracy if each.HasField("estimated_accuracy") else None
        ),
        "estimate_reliable": each.estimate_reliable,
        "drift": _drift(each.drift) if each.HasField("drift") else None,
    }


def _interval(interval: pb.Interval) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _drift(drift: pb.Drift) -> dict[str, Any]:
    return {
        "population_stability_index": dict(drift.population_stability_index),
        "drifted": drift.drifted,
        "window_seconds": drift.window_seconds,
        "rows": drift.rows,
    }

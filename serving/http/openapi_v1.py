"""Of the OpenAPI document, what is our own: classification, feedback, quality, the overview."""

from __future__ import annotations

from serving.digits import MOST_FEEDBACK
from serving.http.history import AGES, INTERVAL
from serving.http.openapi_parts import (
    BYTES,
    Part,
    answer,
    array,
    in_path,
    in_query,
    mapping,
    number,
    one_of,
    operation,
    or_null,
    record,
    ref,
    sent,
    share,
    text,
    truth,
    whole,
)
from serving.pb import digits_pb2
from serving.registry import State

DIGITS, PAGE = "Digits", "Page"

_MODEL = in_query("model", "The model's name; all models without it.")
_VERSION = in_query("version", "The version; the latest without it.")
_NAME = in_path("name", "The model's name.", "^[A-Za-z0-9][A-Za-z0-9_.-]*$")
_NUMBER = in_path("version", "The version's number.", "^[1-9][0-9]{0,17}$")


def paths() -> Part:
    """By path, then method."""
    return {
        "/v1/classify": {"post": _classify()},
        "/v1/feedback": {"post": _feedback()},
        "/v1/quality": {"get": _quality()},
        "/v1/overview": {"get": _overview()},
        "/v1/models/{name}/versions/{version}/report": {"get": _report()},
        "/openapi.json": {"get": _document()},
        "/": {"get": _page()},
        "/static/{file}": {"get": _static()},
    }


def _classify() -> Part:
    return operation(
        "classify",
        DIGITS,
        "Ask the models which digit an image shows",
        {200: answer("What each model said.", json=ref("Classified"))},
        errors=(404, 429, 503, 504),
        parameters=[_MODEL, _VERSION],
        body=sent(png=BYTES, jpeg=BYTES, json=ref("Pixels")),
        description="The image, of any size, grey or in colour, light on dark or dark on light, is"
        " made what MNIST's are before the models see it. Without a model, every one answers that"
        " is for images of digits.",
    )


def _feedback() -> Part:
    return operation(
        "sendFeedback",
        DIGITS,
        "Tell the true labels of predictions",
        {200: answer("What became of each label, in their order.", json=ref("FeedbackResults"))},
        body=sent(json=ref("FeedbackRequest")),
        description="A label that is refused fails no other. Each prediction's counts once.",
    )


def _quality() -> Part:
    return operation(
        "getQuality",
        DIGITS,
        "How right each version is",
        {200: answer("By version.", json=ref("QualityList"))},
        errors=(404, 503),
        parameters=[_MODEL, in_query("version", "The version; all versions without it.")],
    )


def _overview() -> Part:
    return operation(
        "overview",
        PAGE,
        "Models, versions, and how they did over the last minutes",
        {200: answer("All that is known of, over all workers.", json=ref("Overview"))},
    )


def _report() -> Part:
    return operation(
        "report",
        PAGE,
        "The report that a version was published with",
        {200: answer("A page that needs nothing else.", html=text())},
        errors=(404,),
        parameters=[_NAME, _NUMBER],
    )


def _document() -> Part:
    return operation(
        "openapi", PAGE, "This document", {200: answer("OpenAPI 3.1.", json={"type": "object"})}
    )


def _page() -> Part:
    return operation(
        "page",
        PAGE,
        "A page to draw on",
        {200: answer("HTML.", html=text()), 304: _UNCHANGED},
    )


def _static() -> Part:
    file = in_path("file", "The file's name.", "^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    return operation(
        "pageFile",
        PAGE,
        "A file of the page",
        {
            200: answer("By what it is.", html=text(), css=text(), javascript=text(), svg=text()),
            304: _UNCHANGED,
        },
        errors=(404,),
        parameters=[file],
    )


_UNCHANGED = answer("It is what If-None-Match names.")


def schemas() -> Part:
    """What the paths refer to."""
    return {**_of_classify(), **_of_feedback(), **_of_quality(), **_of_overview()}


def _of_classify() -> Part:
    value = whole(maximum=255)
    colours = array(value, "Red, green, blue; and alpha where there is a fourth.")
    row = array({"anyOf": [value, {**colours, "minItems": 3, "maxItems": 4}]}, minItems=1)
    asked = {"model": text(), "version": text()}
    return {
        "Pixels": record(
            {"pixels": array(row, "Rows of pixels, all of one length.", minItems=1)},
            additionalProperties=False,
            examples=[{"pixels": [[0, 0, 0], [0, 255, 0], [0, 255, 0], [0, 0, 0]]}],
        ),
        "Classified": record(
            {"normalised": ref("Normalised"), "answers": array({"anyOf": [_said(), _refused()]})}
        ),
        "Normalised": record(
            {
                "height": whole(),
                "width": whole(),
                "pixels": array(value, "Row by row; 255 is ink."),
            },
            description="What the models saw.",
        ),
        "Said": record(
            {
                **asked,
                "label": text("The likeliest class."),
                "classes": array(text()),
                "probabilities": array(or_null(number()), "By class; null for no number."),
                "prediction_id": text("For feedback."),
                "seconds": record({name: number() for name in ("queue", "compute", "total")}),
                "batch_size": whole("Rows of the batch that it ran in."),
            }
        ),
        "NotSaid": record({**asked, "status": text("gRPC's name for it."), "error": text()}),
    }


def _said() -> Part:
    return ref("Said")


def _refused() -> Part:
    return ref("NotSaid")


def _of_feedback() -> Part:
    item = record({"prediction_id": text(), "label": text("The true one.")})
    result = record(
        {
            "outcome": one_of(digits_pb2.FeedbackResult.Outcome.keys()),
            "reason": text("Why it was not counted; empty where it was."),
        }
    )
    return {
        "FeedbackRequest": record(
            {"feedback": array(item, maxItems=MOST_FEEDBACK)},
            examples=[{"feedback": [{"prediction_id": "as an answer has it", "label": "7"}]}],
        ),
        "FeedbackResults": record({"results": array(result)}),
    }


def _of_quality() -> Part:
    cell = record({"truth": text(), "predicted": text(), "count": whole()})
    return {
        "QualityList": record({"models": array(ref("Quality"))}),
        "Quality": record(
            {
                "model": text(),
                "version": text(),
                "feedback_count": whole(),
                "correct_count": whole(),
                "accuracy": or_null(ref("Interval")),
                "confusion": array(cell, "Cells above 0."),
                "holdout_accuracy": or_null(share("That the manifest promises.")),
                "probe_accuracy": or_null(share("That the latest replay reached.")),
                "probe_passed": truth(),
                "estimated_accuracy": or_null(share("By calibrated confidence.")),
                "estimate_reliable": truth("False where the inputs drifted."),
                "drift": or_null(ref("Drift")),
            }
        ),
        "Interval": record(
            {"value": share(), "low": share(), "high": share()},
            description="A share and the bounds of its Wilson score interval at 95%.",
        ),
        "Drift": record(
            {
                "population_stability_index": mapping(number(), "By feature."),
                "drifted": truth(),
                "window_seconds": number(),
                "rows": whole("In the window."),
            }
        ),
    }


def _of_overview() -> Part:
    named = {"name": text(), "version": text()}
    return {
        "Overview": record(
            {
                "server": record({**named, "ready": truth()}),
                "models": array(ref("OverviewModel")),
                "history": ref("History"),
            }
        ),
        "OverviewModel": record(
            {
                **named,
                "state": one_of(tuple(State)),
                "reason": text("Why it is not ready."),
                "precision": text("Of what runs; empty where nothing does."),
                "device": text(),
                "accuracy": or_null(share("On the validation images.")),
                "classes": array(text()),
                "takes_digits": truth("Whether /v1/classify asks it."),
                "report": or_null(text("The path of its report.")),
            }
        ),
        "History": _history(),
    }


def _history() -> Part:
    def series(description: str) -> Part:
        return array(or_null(number(minimum=0)), description)

    return record(
        {
            "interval_seconds": {**whole(), "const": INTERVAL},
            "ages": array(
                {"type": "integer", "maximum": 0},
                "When each interval ended, in seconds before the latest.",
                minItems=len(AGES),
                maxItems=len(AGES),
            ),
            "models": array(
                record(
                    {
                        "model": text(),
                        "version": text(),
                        "rows_per_second": series("By age; null before the server ran."),
                        "batch_size": series("Rows, the mean; null where no batch ran."),
                        "latency_p50": series("Seconds from a request's arrival to its answer."),
                        "latency_p99": series("As above."),
                    }
                )
            ),
        }
    )

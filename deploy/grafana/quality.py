"""The dashboard of right and wrong answers: by true labels, and without them."""

from __future__ import annotations

from deploy.grafana.expressions import HERE, MODELS, buckets, rate, recorded, variables
from deploy.grafana.panels import (
    Json,
    Panel,
    Query,
    bars,
    dashboard,
    heatmap,
    latest,
    lines,
    stat,
    table,
)

LOWER_IS_WORSE = ((None, "red"), (0.9, "orange"), (0.95, "green"))


def board() -> Json:
    """Accuracy by labels and without them, drift."""
    return dashboard(
        "digits-quality",
        "digits: quality",
        "Are the answers right? By true labels, and by what is known without them.",
        variables(),
        {
            "Now": _right_now(),
            "By labels": _by_labels(),
            "Feedback": _feedback(),
            "Without labels": _without_labels(),
            "Inputs and answers": _distributions(),
        },
    )


def _right_now() -> list[Panel]:
    return [
        stat(
            "Accuracy by labels, 1 h",
            "Share of predictions whose true label came within the hour that were right.",
            "percentunit",
            Query(recorded("accuracy:ratio_increase1h"), "{{model}} {{version}}"),
            *LOWER_IS_WORSE,
            decimals=2,
        ),
        stat(
            "Labels, 1 h",
            "About how many true labels came within the hour.",
            "short",
            Query(recorded("feedback:increase1h"), "{{model}} {{version}}"),
            decimals=0,
        ),
        stat(
            "Estimated accuracy",
            "Mean calibrated confidence over --drift-window: right while nothing drifts.",
            "percentunit",
            Query(
                f"min by (model, version) (inference_estimated_accuracy_ratio{MODELS})",
                "{{model}} {{version}}",
            ),
            *LOWER_IS_WORSE,
            decimals=2,
        ),
        stat(
            "Estimate reliable",
            "0 where the inputs have drifted, so that confidence may mislead.",
            "bool_yes_no",
            Query(recorded("estimate_reliable:min"), "{{model}} {{version}}"),
            *((None, "red"), (1, "green")),
        ),
        stat(
            "Holdout replayed",
            "Accuracy on the version's own holdout, of the latest probe in the worst worker.",
            "percentunit",
            Query(recorded("probe_accuracy:ratio"), "{{model}} {{version}}"),
            *LOWER_IS_WORSE,
            decimals=2,
        ),
        stat(
            "Largest drift",
            "Population stability index of the feature that drifted most, as a share of its limit:"
            " from 100% on it has drifted.",
            "percentunit",
            Query(
                "max by (model, version)"
                f" (inference_drift_psi{MODELS} / inference_drift_limit_psi{MODELS})",
                "{{model}} {{version}}",
            ),
            *((None, "green"), (0.4, "orange"), (1, "red")),
            decimals=0,
        ),
    ]


def _by_labels() -> list[Panel]:
    counts = f"sum by (truth, predicted) (increase(inference_feedback_total{MODELS}[$__range]))"
    matrix = {"columnField": "predicted", "rowField": "truth", "valueField": "Value"}
    return [
        lines(
            "Accuracy with its interval, 1 h",
            "By true labels, with Wilson's 95% interval: wide where few labels came.",
            "percentunit",
            Query(recorded("accuracy:ratio_increase1h"), "{{model}} {{version}}"),
            Query(recorded("accuracy_low:ratio_increase1h"), "{{model}} {{version}}, low"),
            Query(recorded("accuracy_high:ratio_increase1h"), "{{model}} {{version}}, high"),
            Query(recorded("holdout_accuracy:ratio"), "{{model}} {{version}}, holdout"),
            most=1,
        ),
        table(
            "Confusion",
            "Labels that came within the time shown: rows are the truth, columns what was said."
            " Of all chosen models together. Counts are about right; GetQuality's are exact.",
            "short",
            latest(counts),
            transformations=[{"id": "groupingToMatrix", "options": matrix}],
        ),
        bars(
            "Precision and recall, 1 h",
            "Of what was said to be of a class, how much is; of what is of it, how much was said.",
            "percentunit",
            Query(
                f"model_version_class:inference_precision:ratio_increase1h{MODELS}",
                "{{model}} {{class}} precision",
            ),
            Query(
                f"model_version_class:inference_recall:ratio_increase1h{MODELS}",
                "{{model}} {{class}} recall",
            ),
        ),
    ]


def _feedback() -> list[Panel]:
    refused = rate("inference_feedback_refused_total", "reason", of=HERE)
    return [
        lines(
            "Labels per second",
            "True labels that were counted, by whether the prediction was right.",
            "short",
            Query(rate("inference_feedback_total", "correct"), "right: {{correct}}"),
            stacked=True,
        ),
        heatmap(
            "Delay",
            "From a prediction to its true label.",
            "s",
            buckets("inference_feedback_delay_seconds"),
        ),
        lines(
            "Refused, by why",
            "Feedback that was not counted: forged is what another key signed.",
            "short",
            Query(refused, "{{reason}}"),
            stacked=True,
        ),
    ]


def _without_labels() -> list[Panel]:
    return [
        lines(
            "Estimated and measured, 1 h",
            "Mean calibrated confidence beside accuracy by labels. Where they part while nothing"
            " drifts, labels are wrong or confidence is not calibrated.",
            "percentunit",
            Query(
                recorded("estimated_accuracy:ratio_increase1h"), "{{model}} {{version}}, estimated"
            ),
            Query(recorded("accuracy:ratio_increase1h"), "{{model}} {{version}}, by labels"),
            most=1,
        ),
        lines(
            "Holdout: promised and replayed",
            "What the manifest says, and what the latest probe reached in the worst worker.",
            "percentunit",
            Query(recorded("holdout_accuracy:ratio"), "{{model}} {{version}}, promised"),
            Query(recorded("probe_accuracy:ratio"), "{{model}} {{version}}, replayed"),
            most=1,
        ),
        lines(
            "Drift",
            "Population stability index against what the model was made for, and from where on the"
            " server says that it drifted.",
            "short",
            Query(
                f"model_version_feature:inference_drift_psi:max{MODELS}",
                "{{model}} {{version}} {{feature}}",
            ),
            Query(
                f"model_version_feature:inference_drift_limit_psi:max{MODELS}",
                "{{model}} {{version}} {{feature}}, limit",
            ),
        ),
    ]


def _distributions() -> list[Panel]:
    labels = rate("inference_predictions_total", "label")
    return [
        heatmap(
            "Confidence",
            "Calibrated confidence of each prediction.",
            "percentunit",
            buckets("inference_confidence_ratio"),
        ),
        heatmap(
            "Ink",
            "Mean brightness of each image, from 0 to 1: inverted digits have much.",
            "percentunit",
            buckets("inference_ink_ratio"),
        ),
        lines(
            "Predicted labels",
            "Their shares of what was predicted.",
            "percentunit",
            Query(f"{labels} / on () group_left () sum({labels})", "{{label}}"),
            stacked=True,
            most=1,
        ),
    ]

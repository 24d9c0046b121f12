"""The model card: one self-contained HTML page of what was trained and how well it does.

Draws with matplotlib's figures directly, without its global state, and embeds them as PNG.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from model_repository import Quality, Variant
from training.calibration import calibrated
from training.dataset import Dataset
from training.export import Answers, Comparison
from training.learner import Recorder
from training.reliability_diagram import reliability_diagram

REPORT = "report.html"
WORST = 24  # images shown that the model got most wrong


@dataclass(frozen=True, slots=True)
class Card:
    """What the page shows; `answers` are eager PyTorch's on all validation images."""

    name: str
    recorder: Recorder
    dataset: Dataset
    answers: Answers
    quality: Quality
    facts: dict[str, object]  # the manifest's
    variants: tuple[Variant, ...]
    comparisons: list[Comparison]


def write(card: Card, directory: Path) -> None:
    """Write report.html beside the model files it speaks of."""
    sections: list[tuple[str, Callable[[], str]]] = [
        ("Accuracy", lambda: _accuracy_table(card, directory)),
        ("Learning curves", lambda: _image(_curves(card.recorder), "loss and accuracy by epoch")),
        ("Confusion matrix", lambda: _image(_confusion(card), "true against predicted labels")),
        ("Reliability", lambda: _reliability(card)),
        ("Mean digits", lambda: _image(_means(card.dataset), "mean training image of each class")),
        ("Most wrong", lambda: _worst(card)),
        ("Parity with eager PyTorch", lambda: _parity_table(card.comparisons)),
        ("Facts", lambda: _facts_table(card.facts)),
    ]
    body = "".join(f"<h2>{title}</h2>{draw()}" for title, draw in sections)
    page = _PAGE.format(name=html.escape(card.name), body=body)
    (directory / REPORT).write_text(page, encoding="utf-8")


def confusion(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """Counts (C, C): row is the true class, column the predicted one."""
    counts = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64)


def _accuracy_table(card: Card, directory: Path) -> str:
    rows = [
        [v.file, v.precision, _percent(v.accuracy), f"{(directory / v.file).stat().st_size:,}"]
        for v in card.variants
    ]
    table = _table(["file", "precision", "accuracy", "bytes"], rows)
    counts = confusion(card.dataset.valid.labels, card.answers[1], len(card.dataset.labels))
    by_class = [
        [
            label,
            f"{counts[i, i]:,}",
            f"{counts[i].sum():,}",
            f"{counts[i, i] / counts[i].sum():.4f}",
        ]
        for i, label in enumerate(card.dataset.labels)
    ]
    return table + _table(["class", "right", "images", "share"], by_class)


def _parity_table(comparisons: list[Comparison]) -> str:
    rows = [
        [
            c.runtime,
            str(c.batch_size),
            f"{c.images:,}",
            str(c.label_disagreements),
            f"{c.max_probability_difference:.2g}",
        ]
        for c in comparisons
    ]
    head = ["runtime", "batch size", "images", "labels differing", "largest probability difference"]
    return _table(head, rows)


def _facts_table(facts: dict[str, object]) -> str:
    """All but quality, whose distributions are for a server to read."""
    shown = {key: value for key, value in facts.items() if key != "quality"}
    return _table(
        ["fact", "value"], [[key.replace("_", " "), _plain(value)] for key, value in shown.items()]
    )


def _plain(value: object) -> str:
    """A fact as a reader would write it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return "; ".join(f"{key.replace('_', ' ')}: {_plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _curves(recorder: Recorder) -> Figure:
    figure = Figure(figsize=(9, 3), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs = [row.epoch for row in recorder.epochs]
    loss.plot(epochs, [row.train_loss for row in recorder.epochs], "o-", label="train")
    loss.plot(epochs, [row.valid_loss for row in recorder.epochs], "o-", label="valid")
    loss.set(title="loss", xlabel="epoch")
    loss.legend()
    accuracy.plot(epochs, [row.accuracy for row in recorder.epochs], "o-")
    accuracy.set(title="accuracy (valid)", xlabel="epoch")
    rate.plot(recorder.rates)
    rate.set(title="learning rate", xlabel="step")
    return figure


def _confusion(card: Card) -> Figure:
    labels = card.dataset.labels
    counts = confusion(card.dataset.valid.labels, card.answers[1], len(labels))
    figure = Figure(
        figsize=(1.6 + 0.5 * len(labels), 1.4 + 0.45 * len(labels)), layout="constrained"
    )
    axes = figure.subplots()
    axes.imshow(np.log1p(counts), cmap="Blues")
    for (row, column), count in np.ndenumerate(counts):
        dark = np.log1p(count) > 0.6 * np.log1p(counts.max())
        colour = "white" if dark else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="predicted", ylabel="true")
    return figure


def _reliability(card: Card) -> str:
    probabilities, labels = card.answers[0], card.dataset.valid.labels
    temperature, others = card.quality.temperature, card.quality.images
    estimate = calibrated(probabilities, temperature).max(axis=1).mean()
    text = (
        f"{(card.answers[1] == labels).mean():.4f} of the {len(labels):,} validation images are"
        f" right; the mean of the calibrated confidence, which needs no labels, is {estimate:.4f}."
        f" The temperature was fitted on {others:,} other images, where the expected calibration"
        f" error is {card.quality.expected_calibration_error:.4f}. A circle's area is the share of"
        " images with that confidence; bars are 95% intervals."
    )
    figure = reliability_diagram(probabilities, labels, temperature)
    return f"<p>{text}</p>" + _image(figure, "confidence against accuracy")


def _means(dataset: Dataset) -> Figure:
    figure = Figure(figsize=(1.2 * len(dataset.labels), 1.5), layout="constrained")
    row = figure.subplots(1, len(dataset.labels), squeeze=False)[0]
    for index, axes in enumerate(row):
        axes.imshow(dataset.train.images[dataset.train.labels == index].mean(0), cmap="gray")
        axes.set_title(dataset.labels[index])
        axes.axis("off")
    return figure


def _worst(card: Card) -> str:
    probabilities, predicted = card.answers
    truth = card.dataset.valid.labels
    right = probabilities[np.arange(len(truth)), truth]
    wrong = np.flatnonzero(predicted != truth)
    rows = wrong[np.argsort(right[wrong])][:WORST]
    if not len(rows):
        return "<p>No validation image was misclassified.</p>"
    figure = Figure(figsize=(9, 1.6 * -(-len(rows) // 8)), layout="constrained")
    grid = figure.subplots(-(-len(rows) // 8), 8, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, row in zip(grid, rows, strict=False):
        axes.imshow(card.dataset.valid.images[row], cmap="gray")
        names = card.dataset.labels[truth[row]], card.dataset.labels[predicted[row]]
        axes.set_title(
            f"{names[0]} taken for {names[1]}\nP({names[0]}) = {right[row]:.3f}", fontsize=7
        )
    shown = f"{len(wrong)} of {len(truth)} images are wrong; the {len(rows)} least likely ones:"
    return f"<p>{shown}</p>" + _image(figure, "misclassified validation images")


def _image(figure: Figure, text: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{data}">'


def _table(head: list[str], rows: list[list[str]]) -> str:
    def cells(row: list[str], tag: str) -> str:
        return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table><tr>{cells(head, 'th')}</tr>{body}</table>"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto }}
table {{ border-collapse: collapse; margin: 0.5rem 0 }}
td:first-child {{ white-space: nowrap }}
th, td {{ border: 1px solid #ccc; padding: 0.2rem 0.6rem; overflow-wrap: anywhere }}
img {{ max-width: 100% }}
</style></head>
<body><h1>{name}</h1>{body}</body></html>
"""

"""What the clients give: labels and probabilities, accuracy, models, and how a call failed.

Values only: no channel and no protobuf.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

import grpc
import numpy as np
from numpy.typing import NDArray

# A class, by its name; of digits also as a number.
Label: TypeAlias = str | int | np.integer[Any]
# Of a Classification's rows, those that its repr shows.
_SHOWN = 5


class RequestFailed(Exception):
    """The server refused or could not be reached; `code` is the gRPC status.

    `pushback` is what the server said of trying again, in milliseconds: not at all where that is
    no number, or one below 0; None where it said nothing.
    """

    def __init__(
        self, code: grpc.StatusCode, details: str | None, pushback: str | None = None
    ) -> None:
        super().__init__(f"{code.name}: {details or ''}")
        self.code = code
        self.pushback = pushback


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one model said of one image."""

    label: str
    probability: float  # of the label
    probabilities: Mapping[str, float]  # by class
    prediction_id: str  # for feedback; empty where the model or the server gives none
    model: str
    version: str

    def __repr__(self) -> str:
        who = f"{self.model} version {self.version}"
        return f"<Prediction {self.label!r} {self.probability:.4f} by {who}>"


@dataclass(frozen=True, slots=True, eq=False)
class Classification:
    """What one model said about N images; a sequence of N predictions."""

    model: str
    version: str
    labels: tuple[str, ...]  # (N,) name of each image's class
    probabilities: NDArray[np.float32]  # (N, C)
    classes: tuple[str, ...]  # (C,) names of the columns
    # (N,) for `send_feedback`; empty where the model or the server gives none
    prediction_ids: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Prediction:
        row = dict(zip(self.classes, map(float, self.probabilities[index]), strict=True))
        label = self.labels[index]
        told = self.prediction_ids[index] if self.prediction_ids else ""
        return Prediction(label, row[label], row, told, self.model, self.version)

    def __iter__(self) -> Iterator[Prediction]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        some = (self[index] for index in range(min(len(self), _SHOWN)))
        shown = [f"{each.label!r} {each.probability:.4f}" for each in some]
        rows = ", ".join(shown + ["..."] * (len(self) > _SHOWN))
        return f"<Classification of {len(self)} by {self.model} version {self.version}: {rows}>"


class Outcome(StrEnum):
    """What became of a true label that was sent."""

    COUNTED = "counted"
    REPEATED = "repeated"  # counted before: nothing is left to do
    MALFORMED = "malformed"
    FORGED = "forged"  # of a server with another key
    EXPIRED = "expired"
    UNKNOWN_MODEL = "unknown_model"


@dataclass(frozen=True, slots=True)
class FeedbackResult:
    """The outcome of one label, and why it was not counted."""

    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True)
class Interval:
    """A share, from 0 to 1, and the bounds of its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Drift:
    """How far the requests of a window lie from what the model was trained for."""

    population_stability_index: Mapping[str, float]  # by feature; empty with too few rows
    drifted: bool
    window_seconds: float
    rows: int


@dataclass(frozen=True, slots=True)
class ModelQuality:
    """How right one version was, and what is known of that without labels; None for what is not."""

    model: str
    version: str
    feedback_count: int
    correct_count: int
    accuracy: Interval | None
    confusion: Mapping[tuple[str, str], int]  # by (truth, predicted), those above 0
    holdout_accuracy: float | None
    probe_accuracy: float | None
    probe_passed: bool
    estimated_accuracy: float | None
    estimate_reliable: bool
    drift: Drift | None


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """Who answers, and which extensions of V2 it knows."""

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelState:
    """A version of the server's repository: READY, LOADING, UNAVAILABLE or UNLOADING, and why."""

    name: str
    version: str
    state: str
    reason: str  # empty where it is READY


@dataclass(frozen=True, slots=True)
class Tensor:
    """One of a model's inputs or outputs."""

    name: str
    datatype: str  # V2's, such as "UINT8"
    shape: tuple[int, ...]  # -1 is variable


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a model takes and gives."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    classes: tuple[str, ...]  # empty where the server tells none
    notes: tuple[str, ...]  # what was chosen when it was loaded, such as its precision


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """Sums since the server started; seconds are those of all requests together."""

    model: str
    version: str
    requests: int  # that were answered
    failures: int
    rows: int
    executions: int  # batches
    seconds: float  # of the answered ones, from their coming to their answer
    queue_seconds: float

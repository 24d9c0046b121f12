"""What one batch cost, as the batcher measures it and the metrics count it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Execution:
    """A batch that ran and was answered; one entry per answered request in the sequences.

    A request whose caller left while the batch ran has no entry, but its rows were computed. Those
    of background requests, which ran along, are not told.
    """

    rows: int  # of all callers in the batch, without padding
    request_rows: Sequence[int]
    queue_seconds: Sequence[float]  # from arrival to the start of the batch
    request_seconds: Sequence[float]  # from arrival to the answer
    compute_input_seconds: float
    compute_infer_seconds: float
    compute_output_seconds: float

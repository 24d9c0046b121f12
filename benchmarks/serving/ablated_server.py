"""Our server with parts of its work left out, to learn what they cost. An ablation, no mode of it.

    python -m benchmarks.serving.ablated_server PART[,PART] [OPTION OF python -m serving ...]

`metrics`: nothing of a request or a batch is counted, nor made only to be counted; what is left is
one store for each request that comes or goes. `quality`: the outputs are not read for predictions
at all, so that there are no prediction ids either.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable

from serving import batcher, predictions, registry
from serving.main import main
from serving.metrics import Metrics
from serving.model_metrics import ModelMetrics
from serving.prediction_counts import PredictionCounts

COUNTING = ("executed", "replied", "failed", "pending", "busy")


def without_metrics() -> None:
    """Replace what each request or batch passes through by nothing."""
    for name in COUNTING:
        replace(ModelMetrics, name, _nothing)
    replace(Metrics, "refused", _nothing)
    replace(batcher, "execution", _nothing)
    replace(PredictionCounts, "add", _nothing)
    replace(predictions, "ink", lambda images, rows: math.nan)
    replace(predictions, "calibrated", lambda scores, top, temperature: top)


def without_quality() -> None:
    """Take every model for one that has no class labels."""
    replace(registry, "predictor", _nothing)


def replace(owner: object, name: str, by: object) -> None:
    """AttributeError where there is no such thing, which must not pass for costing nothing."""
    getattr(owner, name)
    setattr(owner, name, by)


def _nothing(*arguments: object, **named: object) -> None:
    pass


PARTS: dict[str, Callable[[], None]] = {"metrics": without_metrics, "quality": without_quality}


if __name__ == "__main__":
    for part in sys.argv[1].split(","):
        PARTS[part]()
    sys.exit(main(sys.argv[2:], os.environ))

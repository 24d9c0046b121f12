"""Our server with parts of its work left out, to learn what they cost. An ablation, no mode of it.

    python -m benchmarks.serving.ablated_server PART[,PART] [OPTION OF python -m serving ...]

`metrics`: the lane has nowhere to count, and so counts nothing of a request or a batch. `quality`:
the outputs are not read for predictions at all, so that there are no prediction ids, nothing for
drift, and nothing that feedback could be sent to. Of the lane only: grpcio's requests are counted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from serving import registry
from serving.main import main
from serving.native_models import NativeSeries


def without_metrics() -> None:
    """Give the lane no slots: it passes over what it has none for."""
    nowhere = memoryview(bytearray()).cast("d")
    uncounted = {
        "slots": {},
        "histograms": {},
        "predictions": [],
        "refusal": lambda code, reason: (nowhere, nowhere),
        "batches": lambda rows: nowhere,
    }
    replace(NativeSeries, "slots", lambda *arguments: nowhere)
    replace(NativeSeries, "of_version", lambda *arguments: uncounted)


def without_quality() -> None:
    """Take every model for one that has no class labels."""
    replace(registry, "predictor", lambda *arguments: None)


def replace(owner: object, name: str, by: object) -> None:
    """AttributeError where there is no such thing, which must not pass for costing nothing."""
    getattr(owner, name)
    setattr(owner, name, by)


PARTS: dict[str, Callable[[], None]] = {"metrics": without_metrics, "quality": without_quality}


if __name__ == "__main__":
    for part in sys.argv[1].split(","):
        PARTS[part]()
    sys.exit(main(sys.argv[2:], os.environ))

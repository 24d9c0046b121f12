"""Our server with parts of its work left out, to learn what they cost. An ablation, no mode of it.

    python -m benchmarks.serving.ablated_server PART[,PART] [OPTION OF python -m serving ...]

`counting`: nothing of a request or a batch is counted; what is left is one store for each request
that comes or goes. `quality`: the outputs are not read for predictions, so that there are no
prediction ids, and nothing that is counted or made of predictions.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from serving import batcher, registry
from serving.main import main
from serving.metrics import Metrics, ModelMetrics


def without_counting() -> None:
    """Replace whatever counts, and what is made for it only, by nothing."""
    for name in [name for name in vars(ModelMetrics) if not name.startswith("_")]:
        setattr(ModelMetrics, name, _nothing)
    replace(Metrics, "refused", _nothing)
    replace(batcher, "execution", _nothing)


def without_quality() -> None:
    """Take every model for one that has no class labels."""
    replace(registry, "predictor", _nothing)


def replace(owner: object, name: str, by: object) -> None:
    """AttributeError where there is no such thing, which must not pass for having no cost."""
    getattr(owner, name)
    setattr(owner, name, by)


def _nothing(*arguments: object, **named: object) -> None:
    pass


PARTS: dict[str, Callable[[], None]] = {"counting": without_counting, "quality": without_quality}


if __name__ == "__main__":
    for part in sys.argv[1].split(","):
        PARTS[part]()
    sys.exit(main(sys.argv[2:], os.environ))

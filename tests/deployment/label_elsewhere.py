"""Has one server classify images, tells another one their labels, and prints what became of these.

Runs in a pod, with what the client's image has: `python -c SOURCE ADDRESS ADDRESS MODEL HOLDOUT`.
"""

from __future__ import annotations

import sys

import numpy as np

from serving.client import Client


def main(asked: str, told: str, model: str, holdout: str) -> None:
    """One line of outcomes."""
    with np.load(holdout) as arrays:
        images = arrays["images"][:8]
    with Client(asked) as one, Client(told) as other:
        answer = one.classify(images, model)
        results = other.send_feedback(answer.prediction_ids, answer.labels)
    print(*(result.outcome for result in results))


if __name__ == "__main__":
    main(*sys.argv[1:])

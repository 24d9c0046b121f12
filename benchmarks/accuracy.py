"""How accurate each recipe is, over several seeds: ``python -m benchmarks.accuracy``.

Trains every model on MNIST, threes against sevens and all ten digits, and prints mean, minimum and
maximum of the last epoch's validation accuracy beside what was published and what we ask for.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import describe, sentence
from training.data import load_dataset
from training.dataset import Dataset
from training.learner import Epoch, predict, predicted_labels
from training.recipes import STANDARD_MODELS, recipe_for
from training.run import Trained, publish_trained, train

RESULTS = Path(__file__).parent / "results"
TASKS = {"3,7": ("3", "7"), "0-9": tuple("0123456789")}

RECIPES = {"3,7": "best,book", "0-9": "best"}

# (task, recipe, model) → least mean accuracy asked for.
TARGETS = {
    ("3,7", "best", "linear"): 0.983,
    ("3,7", "best", "mlp"): 0.987,
    ("3,7", "best", "mlp_deep"): 0.992,
    ("3,7", "best", "resnet18"): 0.998,
    ("0-9", "best", "linear"): 0.92,
    ("0-9", "best", "mlp"): 0.965,
    ("0-9", "best", "mlp_deep"): 0.98,
    ("0-9", "best", "resnet18"): 0.994,
}
# Model → what write-ups of the fastai book's chapter 4 report for threes against sevens.
PUBLISHED = {
    "pixel_similarity": "926/1010 and 1013/1028",
    "linear": "0.9784 to 0.983",
    "mlp": "0.9818 to 0.9838",
    "mlp_deep": "0.9897",
    "resnet18": "0.9961 to 0.9975",
}


class Silent:
    """An observer that shows nothing."""

    def batch(self, epoch: int, done: int, batches: int) -> None:
        """Ignore a step."""

    def epoch(self, row: Epoch) -> None:
        """Ignore an epoch."""


@dataclass(frozen=True, slots=True)
class Result:
    """One recipe over its seeds."""

    task: str
    recipe: str
    model: str
    epochs: int
    accuracies: list[float]
    right_by_class: list[str]  # of the last seed, "right/images"
    median_seconds: float  # training alone
    target: float | None

    @property
    def met(self) -> str:
        """Whether the mean reaches the target; empty without one."""
        if self.target is None:
            return ""
        return "yes" if statistics.mean(self.accuracies) >= self.target else "NO"


def measure(dataset: Dataset, task: str, recipe_name: str, model: str, seeds: int) -> Result:
    """Train one recipe with seeds 0 to seeds - 1; a model without randomness only once."""
    recipe = recipe_for(model, recipe_name, len(dataset.labels))
    seeds = 1 if recipe.optimiser == "none" else seeds
    runs = [
        train(model, recipe_name, recipe, dataset, seed=seed, observer=Silent())
        for seed in range(seeds)
    ]
    return Result(
        task,
        recipe_name,
        model,
        len(runs[0].recorder.epochs),
        [run.recorder.epochs[-1].accuracy for run in runs],
        _right_by_class(runs[-1], dataset),
        statistics.median(run.seconds for run in runs),
        TARGETS.get((task, recipe_name, model)),
    )


def time_publishing(dataset: Dataset) -> dict[str, float]:
    """Seconds to train, export, prove and publish each of the five models, once each."""
    seconds = {}
    with tempfile.TemporaryDirectory() as repository:
        for model in STANDARD_MODELS:
            start = time.perf_counter()
            recipe = recipe_for(model, "best", len(dataset.labels))
            trained = train(model, "best", recipe, dataset, seed=0, observer=Silent())
            publish_trained(trained, dataset, model, Path(repository))
            seconds[model] = time.perf_counter() - start
    return seconds


def table(results: list[Result], publishing: dict[str, float], machine: dict[str, object]) -> str:
    """Markdown of all that was measured."""
    lines = [
        "# Accuracy on MNIST",
        "",
        f"`python -m benchmarks.accuracy` on {sentence(machine)}",
        "",
        "Share of right labels on the validation images after the last epoch.",
        "",
        "| classes | recipe | model | seeds | epochs | mean | min | max | seconds | published | "
        "asked for | met |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *[_row(result) for result in results],
        "",
        *[
            f"{r.model} ({r.task}, {r.recipe}) has {' and '.join(r.right_by_class)} right by class."
            for r in results
            if r.model.startswith("pixel") and r.task == "3,7"
        ],
        "",
    ]
    if publishing:
        each = ", ".join(f"{model} {seconds:.1f}" for model, seconds in publishing.items())
        total = sum(publishing.values())
        lines += [
            f"Training, exporting, proving and publishing all five for 3,7: {total:.1f} s ({each});"
            " asked for: 90 s.",
            "",
        ]
    return "\n".join(lines)


def _row(result: Result) -> str:
    a = result.accuracies
    shown = [f"{value:.4f}" for value in (statistics.mean(a), min(a), max(a))]
    published = PUBLISHED.get(result.model, "") if result.task == "3,7" else ""
    target = "" if result.target is None else f"≥ {result.target}"
    cells = [result.task, result.recipe, result.model, str(len(a)), str(result.epochs), *shown]
    cells += [f"{result.median_seconds:.1f}", published, target, result.met]
    return "| " + " | ".join(cells) + " |"


def _right_by_class(trained: Trained, dataset: Dataset) -> list[str]:
    images = torch.from_numpy(dataset.valid.images)
    predicted = predicted_labels(predict(trained.classifier.network, images)).numpy()
    truth = dataset.valid.labels
    return [
        f"{int((predicted[truth == i] == i).sum())}/{int((truth == i).sum())}"
        for i in np.unique(truth)
    ]


def main() -> int:
    """Measure, print, write; 0 when every target is met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("MNIST_DIR"))
    parser.add_argument("--tasks", default="3,7;0-9", help="3,7 or 0-9 or 3,7;0-9 (default)")
    parser.add_argument("--models", default=",".join((*STANDARD_MODELS, "pixel_similarity_rmse")))
    parser.add_argument("--recipes", help="default: best,book for 3,7 and best for 0-9")
    parser.add_argument("--seeds", type=int, help="default: 5 for 3,7 and 3 for 0-9")
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="directory, default %(default)s"
    )
    arguments = parser.parse_args()
    machine = describe(("torch", "numpy", "onnxruntime"))
    results: list[Result] = []
    publishing: dict[str, float] = {}
    for task in arguments.tasks.split(";"):
        dataset = load_dataset("mnist", TASKS[task], arguments.data_dir)
        if task == "3,7" and set(STANDARD_MODELS) <= set(arguments.models.split(",")):
            publishing = time_publishing(dataset)
        for recipe in (arguments.recipes or RECIPES[task]).split(","):
            for model in arguments.models.split(","):
                seeds = arguments.seeds or (5 if task == "3,7" else 3)
                results.append(measure(dataset, task, recipe, model, seeds))
                print(_row(results[-1]), flush=True)
        write(arguments.output, results, publishing, machine)  # a task's results survive a kill
    print(table(results, publishing, machine))
    return 1 if any(result.met == "NO" for result in results) else 0


def write(
    directory: Path,
    results: list[Result],
    publishing: dict[str, float],
    machine: dict[str, object],
) -> None:
    """Write accuracy.json and accuracy.md."""
    directory.mkdir(parents=True, exist_ok=True)
    record: dict[str, object] = {"machine": machine, "publishing_seconds": publishing}
    record["results"] = [asdict(result) for result in results]
    (directory / "accuracy.json").write_text(json.dumps(record, indent=1) + "\n")
    (directory / "accuracy.md").write_text(table(results, publishing, machine))


if __name__ == "__main__":
    sys.exit(main())

"""One model from data to a published version: train, export, gate, publish.

Returns values and raises; prints nothing. `training.__main__` shows what happens here.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn

from model_repository import (
    HOLDOUT,
    ONNX_PLATFORM,
    TORCHSCRIPT_PLATFORM,
    DatasetFacts,
    Draft,
    Manifest,
    Quality,
    Variant,
    faults,
    publish,
    read_manifest,
    staging,
    versions,
)
from training import calibration, export, report
from training.checkpoint import Checkpoint
from training.dataset import Dataset, Split
from training.distributed import ALONE, World
from training.export import Answers, Comparison, GateFailed, Runner
from training.holdout import measure
from training.learner import LOSSES, Epoch, Examples, Learner, Observer, Recorder, evaluate
from training.models import Classifier, PixelSimilarity, build
from training.onnx_file import load
from training.quantise import halve, quantise
from training.recipes import Recipe

REDUCED_MODELS = ("resnet18",)  # large enough to gain from int8 and fp16


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model on the CPU, in evaluation mode, and how it came to be."""

    model: str
    recipe_name: str
    recipe: Recipe
    seed: int
    classifier: Classifier
    recorder: Recorder
    seconds: float
    processes: int = 1


@dataclass(frozen=True, slots=True)
class Published:
    """A version in the repository, what was compared before, and what a reader should know."""

    directory: Path
    manifest: Manifest
    comparisons: list[Comparison]
    notes: list[str]


def train(
    model: str,
    recipe_name: str,
    recipe: Recipe,
    dataset: Dataset,
    *,
    seed: int,
    observer: Observer,
    device: str = "cpu",
    epochs: int | None = None,
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
    world: World = ALONE,
) -> Trained:
    """Train on the dataset's training images; the same seed on the same machine repeats it.

    Where there are several processes, each calls this alike, and all get the same weights.
    """
    start = time.perf_counter()
    torch.manual_seed(seed)
    one_logit = recipe.one_logit and len(dataset.labels) == 2
    network = build(recipe.network, 1 if one_logit else len(dataset.labels), recipe.standardise)
    if world.rank:
        torch.manual_seed(seed + world.rank)  # other rows, so other draws of dropout
    train_on, valid = (_examples(split, device) for split in (dataset.train, dataset.valid))
    network.to(device)
    if isinstance(network[1], PixelSimilarity):
        recorder = _fit_means(network, network[1], recipe, train_on, valid, observer)
    else:
        learner = Learner(network, train_on, valid, recipe, seed, observer, world)
        with _threads_for(recipe):
            _descend(learner, epochs or recipe.epochs_for(len(train_on.labels)), checkpoint, resume)
        recorder = learner.recorder
    classifier = Classifier(network.cpu(), one_logit).eval()
    seconds = time.perf_counter() - start
    return Trained(model, recipe_name, recipe, seed, classifier, recorder, seconds, world.size)


def publish_trained(
    trained: Trained,
    dataset: Dataset,
    name: str,
    repository: Path,
    min_accuracy: float | None = None,
) -> Published:
    """Export, prove and publish a trained model as the next version of `name`.

    Raises GateFailed, leaving the repository as it was, where the accuracy is below `min_accuracy`
    (default: the recipe's for the dataset) or a runtime answers differently from PyTorch.
    """
    eager = export.answer(export.eager_runner(trained.classifier), dataset.valid.images, 256)
    accuracy = export.accuracy(eager, dataset.valid)
    floor = (
        trained.recipe.min_accuracy(dataset.name, dataset.labels)
        if min_accuracy is None
        else min_accuracy
    )
    if accuracy < floor:
        raise GateFailed(f"accuracy {accuracy:.4f} is below the required {floor:.4f}")
    with staging(repository) as directory:
        comparisons = _export(trained.classifier, dataset, name, directory, eager)
        export.write_holdout(dataset.valid, directory / HOLDOUT)
        variants, notes = _variants(trained, dataset, directory, accuracy)
        quality = _quality(export.eager_runner(trained.classifier), dataset)
        facts = _facts(trained, dataset, accuracy, comparisons, quality)
        report.write(
            report.Card(
                name, trained.recorder, dataset, eager, quality, facts, variants, comparisons
            ),
            directory,
        )
        signature = export.INPUTS, export.outputs(len(dataset.labels))
        path = publish(directory, Draft(name, *signature, variants, facts))
    return Published(path, read_manifest(path), comparisons, notes)


def published_alike(
    model_directory: Path,
    recipe_name: str,
    recipe: Recipe,
    dataset: Dataset,
    *,
    seed: int,
    epochs: int | None = None,
) -> Path | None:
    """The model's latest version where it is whole and the same run would make it, else None.

    One without `quality` was made before training knew of it, and would be made otherwise today.
    """
    numbers = versions(model_directory)
    if not numbers or faults(latest := model_directory / str(numbers[-1])):
        return None
    manifest = read_manifest(latest)
    wanted = _recipe_facts(recipe_name, recipe) | {"seed": seed}
    if recipe.optimiser != "none":
        wanted["epochs"] = epochs or recipe.epochs_for(len(dataset.train.labels))
    found = {key: (manifest.recipe or {}).get(key) for key in wanted}
    same_data = manifest.dataset is not None and manifest.dataset.checksum == dataset.checksum
    same_labels = manifest.labels == dataset.labels
    alike = same_data and same_labels and manifest.quality is not None
    return latest if alike and found == wanted else None


def _recipe_facts(name: str, recipe: Recipe) -> dict[str, object]:
    """The recipe as a manifest holds it: JSON has lists, no tuples."""
    facts = {"name": name, **asdict(recipe), "momenta": list(recipe.momenta)}
    return {key: value for key, value in facts.items() if key != "epochs"}


def _descend(learner: Learner, epochs: int, checkpoint: Checkpoint | None, resume: bool) -> None:
    """Run the recipe, checkpointing after each epoch, from the checkpoint where asked to."""
    world = learner.world
    state = world.from_first(checkpoint.load) if checkpoint and resume else None
    if state:
        learner.load(state)

    def save() -> None:
        state = learner.state()
        if checkpoint and world.leads:
            checkpoint.save(state)

    learner.run(epochs, save if checkpoint else None)


@contextmanager
def _threads_for(recipe: Recipe) -> Iterator[None]:
    """One thread for the small networks: a step is too short to be worth sharing between cores,
    and threads that wait for each other's turn made it ten times slower on a busy machine."""
    threads = torch.get_num_threads()
    if not recipe.network.startswith("resnet"):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fit_means(
    network: nn.Module,
    body: PixelSimilarity,
    recipe: Recipe,
    train_on: Examples,
    valid: Examples,
    observer: Observer,
) -> Recorder:
    """Fit the baseline, which has means and no gradient, in one pass."""
    start = time.perf_counter()
    body.fit(train_on.images, train_on.labels)
    loss = LOSSES[recipe.loss]
    train_loss, _ = evaluate(network, loss, train_on)
    row = Epoch(1, train_loss, *evaluate(network, loss, valid), time.perf_counter() - start)
    recorder = Recorder()
    recorder.epochs.append(row)
    observer.epoch(row)
    return recorder


def _examples(split: Split, device: str) -> Examples:
    return Examples(
        torch.from_numpy(split.images).to(device), torch.from_numpy(split.labels).to(device)
    )


def _export(
    classifier: Classifier, dataset: Dataset, name: str, directory: Path, eager: Answers
) -> list[Comparison]:
    """Write model.pt and model.onnx and hold both against eager's answers; GateFailed."""
    torchscript = export.export_torchscript(classifier, directory / "model.pt")
    onnx = export.export_onnx(classifier, dataset.labels, name, directory / "model.onnx")
    runners = {"TorchScript": torchscript, "ONNX Runtime": onnx}
    comparisons = export.compare(eager, runners, dataset.valid)
    export.parity(comparisons)
    return comparisons


def _variants(
    trained: Trained, dataset: Dataset, directory: Path, accuracy: float
) -> tuple[tuple[Variant, ...], list[str]]:
    """The files to publish; int8 and fp16 beside fp32 where the model has them and they are good
    enough."""
    held = _on_holdout(directory / "model.onnx", dataset)
    variants = [
        Variant("model.onnx", ONNX_PLATFORM, "fp32", "", accuracy, held),
        Variant("model.pt", TORCHSCRIPT_PLATFORM, "fp32", "", accuracy),
    ]
    notes: list[str] = []
    if trained.model in REDUCED_MODELS:
        source = directory / "model.onnx"
        quantise(source, directory / "model.int8.onnx", dataset.calibration.images)
        halve(source, directory / "model.fp16.onnx")
        for precision in ("int8", "fp16"):
            path = directory / f"model.{precision}.onnx"
            reached = _reached(path, dataset)
            # At most 0.1 percentage points, or one image where the validation set is small.
            if accuracy - reached > max(0.001, 1 / len(dataset.valid.labels)) + 1e-9:
                path.unlink()
                notes.append(f"{precision} dropped: accuracy {reached:.4f} against {accuracy:.4f}")
            else:
                variants.append(_reduced(path, precision, reached, dataset))
    return tuple(variants), notes


def _reduced(path: Path, precision: str, accuracy: float, dataset: Dataset) -> Variant:
    """With a quality of its own: int8's confidences alone looked like drift from fp32's."""
    held, quality = _on_holdout(path, dataset), _quality(export.onnx_runner(path), dataset)
    return Variant(path.name, ONNX_PLATFORM, precision, "", accuracy, held, quality)


def _reached(path: Path, dataset: Dataset) -> float:
    """The accuracy of an ONNX file on the validation images, by ONNX Runtime on the CPU."""
    answers = export.answer(export.onnx_runner(path), dataset.valid.images, 64)
    return export.accuracy(answers, dataset.valid)


def _on_holdout(path: Path, dataset: Dataset) -> float | None:
    """What a server that replays the holdout on a CPU must reach too."""
    return measure(path.parent / HOLDOUT, load(path), len(dataset.labels))


def _facts(
    trained: Trained,
    dataset: Dataset,
    accuracy: float,
    comparisons: list[Comparison],
    quality: Quality,
) -> dict[str, object]:
    recipe = _recipe_facts(trained.recipe_name, trained.recipe)
    recipe |= {"seed": trained.seed, "epochs": len(trained.recorder.epochs)}
    recipe |= {"seconds": round(trained.seconds, 3), "processes": trained.processes}
    return {
        "task": "classification",
        "labels": dataset.labels,
        "accuracy": accuracy,
        "dataset": DatasetFacts(
            dataset.name,
            dataset.checksum,
            len(dataset.train.labels),
            len(dataset.calibration.labels),
            len(dataset.valid.labels),
        ),
        "recipe": recipe,
        "parity": export.parity(comparisons),
        "quality": quality,
        "source_commit": _source_commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _quality(run: Runner, dataset: Dataset) -> Quality:
    """From the calibration images, which the model was neither trained nor judged on."""
    probabilities, _ = export.answer(run, dataset.calibration.images, 256)
    return calibration.quality(probabilities, dataset)


def _source_commit() -> str | None:
    """The commit of this source tree, None outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()

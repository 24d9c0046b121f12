"""``python -m training``: the command line, and the only part of training that prints."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from model_repository import RepositoryError
from training.checkpoint import Checkpoint, CheckpointError
from training.config import ConfigError, TrainConfig, parse_config
from training.data import default_cache_dir, load_dataset
from training.dataset import DataError, Dataset
from training.distributed import Stopped, World, joined, world_of
from training.export import GateFailed
from training.import_config import parse_import
from training.import_onnx import import_model
from training.learner import Epoch
from training.onnx_file import OnnxError
from training.recipes import Recipe, recipe_for
from training.run import Published, Trained, publish_trained, published_alike, train


class Display:
    """Draws a progress bar within each epoch and prints fastai's row after it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=console, transient=True, disable=console.quiet)
        self.bar = self.progress.add_task("", epoch=0)

    def __enter__(self) -> Display:
        head = ("epoch", "train_loss", "valid_loss", "accuracy", "time")
        self.console.print("{:>7} {:>11} {:>11} {:>9} {:>8}".format(*head), style="bold")
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def batch(self, epoch: int, done: int, batches: int) -> None:
        """Move the bar."""
        self.progress.update(self.bar, epoch=epoch, completed=done, total=batches)

    def epoch(self, row: Epoch) -> None:
        """Print the row."""
        self.console.print(
            f"{row.epoch:>7} {row.train_loss:>11.6f} {row.valid_loss:>11.6f}"
            f" {row.accuracy:>9.6f} {row.seconds:>7.2f}s",
            highlight=False,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when all is published, 1 when a gate failed, 2 when input is unusable."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["import"]:
            return _import(arguments[1:])
        return _train(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (DataError, OnnxError, ConfigError, CheckpointError, RepositoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped:
        return 2
    except OSError as error:
        print(f"error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 2


def _import(arguments: Sequence[str]) -> int:
    config = parse_import(arguments)
    if world_of(os.environ).size > 1:
        raise ConfigError("import is for one process: start it without torchrun")
    _require_writable(config.model_repository)
    path, manifest = import_model(config)
    accuracy = "" if manifest.accuracy is None else f", accuracy {manifest.accuracy:.4f} on holdout"
    console = Console(soft_wrap=True, markup=False)
    console.print(f"published {path}{accuracy}", highlight=False)
    for kind, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
        for spec in specs:
            shape = list(spec.shape)
            console.print(f"  {kind:<6} {spec.name}: {spec.datatype} {shape}", highlight=False)
    return 0


def _train(arguments: Sequence[str]) -> int:
    config = parse_config(arguments, os.environ)
    config = dataclasses.replace(config, device=_device(config.device))
    try:
        with joined(os.environ, config.device) as world:
            console = Console(soft_wrap=True, markup=False, quiet=not world.leads)
            dataset = world.from_first(lambda: _prepare(config, console))
            results = [
                _train_and_publish(m, config, dataset, console, world) for m in config.models
            ]
    except KeyboardInterrupt:
        if world_of(os.environ).leads:
            print("interrupted; --resume goes on after the last finished epoch", file=sys.stderr)
        return 130
    return 0 if all(results) else 1


def _prepare(config: TrainConfig, console: Console) -> Dataset:
    """Load the data; other processes are sent it, so that they need neither files nor network."""
    dataset = load_dataset(
        config.dataset,
        config.classes,
        config.data_dir,
        cache_dir=default_cache_dir(os.environ),
        say=console.print,
        progress=console.is_terminal,
    )
    _require_writable(config.model_repository)
    console.print(_described(dataset), highlight=False)
    return dataset


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no CUDA device")
    return wanted


def _require_writable(repository: Path) -> None:
    """Find out before hours of training that nothing could be published; OSError."""
    repository.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=repository):
        pass


def _described(dataset: Dataset) -> str:
    counts = {"train": dataset.train, "calibration": dataset.calibration, "valid": dataset.valid}
    images = ", ".join(f"{len(split.labels):,} {name}" for name, split in counts.items())
    return f"data: {dataset.origin}\n      classes {', '.join(dataset.labels)}; {images} images"


def _train_and_publish(
    model: str, config: TrainConfig, dataset: Dataset, console: Console, world: World
) -> bool:
    name = config.published_name(model)
    recipe = recipe_for(model, config.recipe, len(config.classes))
    checkpoint = _checkpoint(name, recipe, config, dataset, world)
    if kept := world.from_first(lambda: _kept(name, recipe, config, dataset, checkpoint)):
        console.print(f"kept {kept}: trained by the same recipe on the same data", highlight=False)
        return True
    processes = f" x {world.size}" if world.size > 1 else ""
    console.rule(f"{name} ({config.recipe} recipe, {config.device}{processes})", align="left")
    with Display(console) as display:
        trained = train(
            model,
            config.recipe,
            recipe,
            dataset,
            seed=config.seed,
            observer=display,
            device=world.device,
            epochs=config.epochs,
            checkpoint=checkpoint,
            resume=config.resume,
            world=world,
        )
    return world.from_first(lambda: _publish(trained, name, config, dataset, checkpoint, console))


def _publish(
    trained: Trained,
    name: str,
    config: TrainConfig,
    dataset: Dataset,
    checkpoint: Checkpoint,
    console: Console,
) -> bool:
    """Whether it passed the gates."""
    try:
        published = publish_trained(
            trained, dataset, name, config.model_repository, config.min_accuracy
        )
    except GateFailed as error:
        print(f"error: {name} is not published: {error}", file=sys.stderr)
        return False
    checkpoint.remove()
    _show(published, console)
    return True


def _kept(
    name: str, recipe: Recipe, config: TrainConfig, dataset: Dataset, checkpoint: Checkpoint
) -> Path | None:
    """What is published already and need not be trained again, where the user asked so."""
    finished = config.resume and not checkpoint.path.exists()
    if not config.skip_existing and not finished:
        return None
    return published_alike(
        config.model_repository / name,
        config.recipe,
        recipe,
        dataset,
        seed=config.seed,
        epochs=config.epochs,
    )


def _checkpoint(
    name: str, recipe: Recipe, config: TrainConfig, dataset: Dataset, world: World
) -> Checkpoint:
    directory = config.checkpoint_dir or config.model_repository / ".checkpoints"
    run = {"name": name, "recipe": repr(recipe), "seed": config.seed, "epochs": config.epochs}
    # Each device, and each share of a batch, has random numbers of its own.
    run |= {"device": config.device, "processes": world.size}
    return Checkpoint(Path(directory) / f"{name}.checkpoint", {**run, "dataset": dataset.checksum})


def _show(published: Published, console: Console) -> None:
    manifest = published.manifest
    assert manifest.parity is not None
    console.print(
        f"published {published.directory}: accuracy {manifest.accuracy:.4f}; TorchScript and ONNX"
        f" agree on {manifest.parity.images:,} images within"
        f" {manifest.parity.max_probability_difference:.1e}",
        highlight=False,
    )
    for variant in manifest.variants:
        if variant.precision != "fp32":
            console.print(
                f"          {variant.file}: accuracy {variant.accuracy:.4f}", highlight=False
            )
    for note in published.notes:
        console.print(f"          note: {note}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())

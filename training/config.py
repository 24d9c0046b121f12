"""What a training run is told: one frozen TrainConfig; its flags are derived from its fields."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_repository import RepositoryError, require_model_name
from training.dataset import DataError, parse_classes
from training.recipes import MODEL_NAMES, RECIPE_NAMES, STANDARD_MODELS


class ConfigError(Exception):
    """A setting that cannot be used; the message names the flag and the value."""


def _models(text: str) -> tuple[str, ...]:
    names = STANDARD_MODELS if text == "all" else tuple(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in MODEL_NAMES]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not one of {', '.join(MODEL_NAMES)} or all")
    return names


def _classes(text: str) -> tuple[str, ...]:
    try:
        return parse_classes(text)
    except DataError as error:
        raise ValueError(str(error)) from None


def _at_least(kind: type[int] | type[float], low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise ValueError(f"{text} is not within {low} and {high}")
        return value

    return parse


def _about(
    group: str,
    text: str,
    *,
    parse: Callable[[str], Any] = str,
    choices: Sequence[str] | None = None,
    environment: str | None = None,
    metavar: str | None = None,
) -> dict[str, Any]:
    """What a flag needs beside its default: help group and text, parser, environment name."""
    return {
        "group": group,
        "help": text,
        "parse": parse,
        "choices": choices,
        "environment": environment,
        "metavar": metavar,
    }


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One call of the training command."""

    models: tuple[str, ...] = field(
        default=STANDARD_MODELS,
        metadata=_about(
            "what to train",
            f"comma-separated: {', '.join(MODEL_NAMES)}; all is the first five",
            parse=_models,
            metavar="NAMES",
        ),
    )
    classes: tuple[str, ...] = field(
        default=("3", "7"),
        metadata=_about(
            "what to train",
            "classes to tell apart: 3,7 or 0-9 or 1,3-5 or folder names",
            parse=_classes,
            metavar="CLASSES",
        ),
    )
    name: str | None = field(
        default=None,
        metadata=_about(
            "what to train",
            "name to publish under; with several models MODEL_NAME. Needed for classes other than"
            " 3,7 (published as MODEL) and 0-9 (MODEL_0_9)",
        ),
    )
    recipe: str = field(
        default="best",
        metadata=_about(
            "how to train", "best, or book: as the fastai book does", choices=RECIPE_NAMES
        ),
    )
    epochs: int | None = field(
        default=None,
        metadata=_about(
            "how to train", "epochs, instead of the recipe's", parse=_at_least(int, 1, 10000)
        ),
    )
    seed: int = field(
        default=0,
        metadata=_about(
            "how to train",
            "seed; on one machine's CPU the same seed repeats a run bit for bit",
            parse=_at_least(int, 0, 2**63 - 1),
        ),
    )
    device: str = field(
        default="auto",
        metadata=_about(
            "how to train",
            "auto takes a CUDA device where there is one",
            choices=("auto", "cpu", "cuda"),
        ),
    )
    resume: bool = field(
        default=False,
        metadata=_about(
            "how to train",
            "go on from the checkpoint that a killed run left after an epoch; models that it had"
            " published are kept",
        ),
    )
    checkpoint_dir: Path | None = field(
        default=None,
        metadata=_about(
            "how to train",
            "where a checkpoint is kept after each epoch (default: .checkpoints in the repository)",
            parse=Path,
            metavar="DIR",
        ),
    )
    dataset: str = field(
        default="auto",
        metadata=_about(
            "data",
            "auto takes MNIST where it is found or downloads within seconds, else digits, the"
            " handwritten digits inside scikit-learn; mnist_sample is a folder or .tgz of"
            " train/CLASS/*.png and valid/CLASS/*.png, 28x28 grey",
            choices=("auto", "mnist", "mnist_sample", "digits"),
        ),
    )
    data_dir: Path | None = field(
        default=None,
        metadata=_about(
            "data",
            "where the MNIST files or the image folders are",
            parse=Path,
            environment="MNIST_DIR",
            metavar="DIR",
        ),
    )
    model_repository: Path = field(
        default=Path("models"),
        metadata=_about(
            "publishing", "model repository to publish into", parse=Path, metavar="DIR"
        ),
    )
    skip_existing: bool = field(
        default=False,
        metadata=_about(
            "publishing",
            "keep a model whose latest version is whole and was trained on the same data by the"
            " same recipe, epochs and seed; one without quality in its manifest, as older ones are,"
            " is trained anew",
        ),
    )
    min_accuracy: float | None = field(
        default=None,
        metadata=_about(
            "publishing",
            "publish nothing below this share of right labels (default: the recipe's for the"
            " dataset)",
            parse=_at_least(float, 0, 1),
        ),
    )

    def published_name(self, model: str) -> str:
        """The name under which a model is published; ConfigError where one must be given."""
        if self.name:
            return self.name if len(self.models) == 1 else f"{model}_{self.name}"
        if self.classes == ("3", "7"):
            return model
        if self.classes == tuple("0123456789"):
            return f"{model}_0_9"
        raise ConfigError(f"--classes {','.join(self.classes)} needs --name")


def parse_config(argv: Sequence[str] | None, environ: Mapping[str, str]) -> TrainConfig:
    """The configuration of a command line: flag > environment > default; exits 2 when unusable."""
    parser = _parser()
    given = {
        key: value for key, value in vars(parser.parse_args(argv)).items() if value is not None
    }
    try:
        config = TrainConfig(**(_from_environment(environ) | given))
        for model in config.models:
            require_model_name(config.published_name(model))
    except (ConfigError, RepositoryError, ValueError) as error:
        parser.error(str(error))
    return config


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description="Train digit classifiers, export them to TorchScript and ONNX, prove that all"
        " answer alike, and publish them into a versioned model repository.",
        epilog="Exit status: 0 all published, 1 a model failed a gate and was not published,"
        " 2 unusable data or settings. Example: python -m training --models resnet18 --classes 0-9."
        " Another command, python -m training import --help, publishes any ONNX model.",
    )
    groups: dict[str, Any] = {}
    for item in dataclasses.fields(TrainConfig):
        title = item.metadata["group"]
        group = groups.setdefault(title, parser.add_argument_group(title))
        _add_flag(group, item)
    return parser


def _add_flag(group: Any, item: dataclasses.Field[Any]) -> None:
    about = item.metadata
    flag = "--" + item.name.replace("_", "-")
    notes = [] if item.default in (None, False) else [f"default: {_shown(item.default)}"]
    notes += [f"environment: {about['environment']}"] if about["environment"] else []
    text = about["help"] + (f" ({'; '.join(notes)})" if notes else "")
    if isinstance(item.default, bool):
        group.add_argument(flag, action="store_true", default=None, help=text)
        return
    options = {"choices": about["choices"], "metavar": about["metavar"]}
    group.add_argument(flag, type=_named(flag, about["parse"]), help=text, **options)


def _named(flag: str, parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """argparse shows only ArgumentTypeError's own text."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def _shown(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for item in dataclasses.fields(TrainConfig):
        name = item.metadata["environment"]
        if name and environ.get(name):
            values[item.name] = item.metadata["parse"](environ[name])
    return values

"""What an import is told: one frozen ImportConfig and the flags that fill it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model_repository import RepositoryError, require_model_name
from training.config import TrainConfig


@dataclass(frozen=True, slots=True)
class ImportConfig:
    """One call of the import command."""

    file: Path
    name: str
    labels: Path | None
    holdout: Path | None
    model_repository: Path


def parse_import(argv: Sequence[str]) -> ImportConfig:
    """The configuration of a command line; exits with 2 when unusable."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        require_model_name(arguments.name)
    except RepositoryError as error:
        parser.error(str(error))
    return ImportConfig(**vars(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training import",
        description="Publish an ONNX model that was not trained here, with any inputs, outputs and"
        " datatypes. It is checked, run once, and made one self-contained file.",
        epilog="Exit status: 0 published, 2 an unusable file or setting.",
    )
    parser.add_argument("file", type=Path, metavar="FILE.onnx")
    parser.add_argument("--name", required=True, help="name to publish under")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="class names: UTF-8, one a line, in order"
    )
    parser.add_argument(
        "--holdout",
        type=Path,
        metavar="FILE.npz",
        help="rows to prove the model on: an array named as each input is and, if the accuracy is"
        " to be measured, labels: INT64, the index of each row's true class",
    )
    parser.add_argument(
        "--model-repository",
        type=Path,
        default=TrainConfig().model_repository,
        metavar="DIR",
        help="model repository to publish into (default: %(default)s)",
    )
    return parser

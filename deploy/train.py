"""``python -m deploy.train``: the models that demonstrations serve, trained unless they are there.

Everything else that it is told goes to each call of the training command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from model_repository import faults, read_manifest, versions

STANDARD = ("pixel_similarity", "linear", "mlp", "mlp_deep", "resnet18")
TEN_DIGITS = ("mlp_deep", "resnet18")
SLOW = "resnet18"


def main(argv: Sequence[str] | None = None) -> int:
    """The training command's exit status: the first that is not 0."""
    arguments, rest = _parser().parse_known_args(argv)
    common = ["--model-repository", str(arguments.model_repository), "--skip-existing", *rest]
    return next(filter(None, (_train([*each, *common]) for each in _calls(arguments))), 0)


def _train(command: list[str]) -> int:
    # Not at the top: torch takes seconds, and often there is nothing to train.
    from training.__main__ import main as train

    return train(command)


def _calls(arguments: argparse.Namespace) -> Iterator[list[str]]:
    """What each call is to train. Asked for one by one: the last depends on what the others did."""
    if models := list(_missing(arguments, arguments.models, "")):
        yield ["--models", ",".join(models), "--classes", "3,7"]
    ten_digits = sorted(arguments.ten_digits, key=lambda name: name == SLOW)
    for model in _missing(arguments, ten_digits, "_0_9"):
        # One epoch over MNIST's 60,000 images is enough of a demonstration for a network that takes
        # a minute for it; the few bundled digits need the recipe's.
        quick = model == SLOW and _on_mnist(arguments)
        epochs = ["--epochs", "1"] if quick else []
        yield ["--models", model, "--classes", "0-9", *epochs]


def _missing(arguments: argparse.Namespace, models: Sequence[str], suffix: str) -> Iterator[str]:
    """Those to train; of what is there, the training command says which it would make again."""
    for model in models:
        directory = arguments.model_repository / f"{model}{suffix}"
        numbers = versions(directory) if arguments.keep == "good" else []
        if numbers and not faults(latest := directory / str(numbers[-1])):
            print(f"kept {latest}")
        else:
            yield model


def _on_mnist(arguments: argparse.Namespace) -> bool:
    """Whether the other models were trained on it; where there is none, nobody knows."""
    ten_digits = (f"{model}_0_9" for model in arguments.ten_digits if model != SLOW)
    for name in (*arguments.models, *ten_digits):
        directory = arguments.model_repository / name
        if numbers := versions(directory):
            dataset = read_manifest(directory / str(numbers[-1])).dataset
            return dataset is not None and dataset.name == "mnist"
    return False


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.train",
        description=__doc__,
        epilog="`python -m training --help` has the other options.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model-repository", type=Path, default=Path("models"), metavar="DIR")
    text = "for threes against sevens, with commas between; empty: none [%(default)s]"
    add("--models", type=_names, default=",".join(STANDARD), metavar="NAMES", help=text)
    text = "the same for all ten digits [%(default)s]"
    add("--ten-digits", type=_names, default=",".join(TEN_DIGITS), metavar="NAMES", help=text)
    text = "alike: a model is kept if this would make it again; good: if it is whole [%(default)s]"
    add("--keep", choices=("alike", "good"), default="alike", help=text)
    return parser


if __name__ == "__main__":
    sys.exit(main())

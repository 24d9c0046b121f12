"""``python -m deploy.train``: the models that demonstrations serve, trained unless they are there.

Everything else that it is told goes to each call of the training command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from model_repository import read_manifest, versions

STANDARD = ("pixel_similarity", "linear", "mlp", "mlp_deep", "resnet18")
TEN_DIGITS = ("mlp_deep", "resnet18")
SLOW = "resnet18"


def main(argv: Sequence[str] | None = None) -> int:
    """The training command's exit status: the first that is not 0."""
    arguments, rest = _parser().parse_known_args(argv)
    # Not at the top: torch takes seconds.
    from training.__main__ import main as train

    repository: Path = arguments.model_repository
    common = ["--model-repository", str(repository), "--skip-existing", *rest]
    return next(filter(None, (train([*each, *common]) for each in _calls(arguments))), 0)


def _calls(arguments: argparse.Namespace) -> Iterator[list[str]]:
    """What each call is to train. Asked for one by one: the last depends on what the others did."""
    if arguments.models:
        yield ["--models", ",".join(arguments.models), "--classes", "3,7"]
    for model in sorted(arguments.ten_digits, key=lambda name: name == SLOW):
        # One epoch over MNIST's 60,000 images is enough of a demonstration for a network that takes
        # a minute for it; the few bundled digits need the recipe's.
        quick = model == SLOW and _on_mnist(arguments)
        epochs = ["--epochs", "1"] if quick else []
        yield ["--models", model, "--classes", "0-9", *epochs]


def _on_mnist(arguments: argparse.Namespace) -> bool:
    """Whether the other models were trained on it; where there is none, nobody knows."""
    ten_digits = (f"{model}_0_9" for model in arguments.ten_digits if model != SLOW)
    others = (*arguments.models, *ten_digits)
    for directory in (arguments.model_repository / name for name in others):
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
    return parser


if __name__ == "__main__":
    sys.exit(main())

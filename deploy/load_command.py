"""``python -m deploy.load``: sends a version's own labelled holdout images, and counts.

Needs nothing but the client's package: it runs in a container beside the server.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from deploy import load
from model_repository import HOLDOUT, RepositoryError, read_manifest, versions
from serving import signals
from serving.client import ADDRESS, RequestFailed


class NoImages(Exception):
    """There is no labelled holdout to send; the message says why."""


def main(argv: Sequence[str] | None = None) -> int:
    """0: all was answered, and no label refused; 1: not so; 2: there is nothing to send."""
    arguments = _parser().parse_args(argv)
    over = signals.stopping()  # what is under way then is still finished
    start = time.monotonic()
    try:
        batches = _batches(arguments)
        manner = load.Manner(
            arguments.rate, not arguments.no_feedback, arguments.retry, arguments.load_balancing
        )
        source = _limited(batches, arguments.requests, arguments.duration)
        address, model = arguments.address, arguments.model
        tally = load.run(address, model, source, arguments.clients, manner, over)
        _write(tally, time.monotonic() - start, arguments.tally)
    except (NoImages, RepositoryError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RequestFailed as error:
        print(f"error: {arguments.address}: {error}", file=sys.stderr)
        return 1
    return 0 if tally.requests and not tally.lost and not tally.refused else 1


def _batches(arguments: argparse.Namespace) -> list[load.Batch]:
    """The holdout's images, shuffled, with the names of their classes from the manifest beside it.
    NoImages, RepositoryError."""
    file = arguments.holdout or _newest(arguments.model_repository, arguments.model)
    classes = read_manifest(file.parent).labels
    try:
        with np.load(file, allow_pickle=False) as holdout:
            images, indices = holdout["images"], holdout["labels"]
    except KeyError as error:
        raise NoImages(f"{file}: {error}") from None
    if images.dtype != np.uint8 or images.ndim != 3 or not len(images):
        raise NoImages(f"{file}: no uint8 images (N, 28, 28), but {images.dtype} {images.shape}")
    order = np.random.default_rng(0).permutation(len(images))
    labels = [classes[index] for index in indices[order]]
    if arguments.wrong_every:
        labels = load.mislabelled(labels, classes, arguments.wrong_every)
    return list(load.batches(images[order], labels))


def _newest(repository: Path, model: str) -> Path:
    numbers = versions(repository / model)
    if not numbers:
        raise NoImages(f"{repository / model}: no version")
    return repository / model / str(numbers[-1]) / HOLDOUT


def _limited(batches: list[load.Batch], requests: int, duration: float) -> Iterator[load.Batch]:
    """Again and again, up to so many requests and seconds; 0 is no limit."""
    again = itertools.islice(itertools.cycle(batches), requests or None)
    end = time.monotonic() + (duration or math.inf)
    return itertools.takewhile(lambda batch: time.monotonic() < end, again)


def _write(tally: load.Tally, seconds: float, file: str) -> None:
    text = json.dumps(_told(tally, seconds), indent=2) + "\n"
    if file == "-":
        sys.stdout.write(text)
    else:
        Path(file).write_text(text)


def _told(tally: load.Tally, seconds: float) -> dict[str, object]:
    quantiles = {f"p{share:g}_seconds": share / 100 for share in (50, 99)}
    return {
        "model": tally.model,
        "seconds": round(seconds, 3),
        "requests": tally.requests,
        "rows": tally.rows,
        "right": tally.right,
        "wrong": tally.wrong,
        "unanswered_tries": tally.unanswered,
        "lost": tally.lost,
        "feedback_refused": tally.refused,
        "versions": dict(sorted(tally.versions.items(), key=lambda each: int(each[0]))),
        **{k: tally.quantile(share) if tally.seconds else None for k, share in quantiles.items()},
    }


def _count(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError("at least 0")
    return number


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _amount(text: str) -> float:
    if not 0 <= (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError("at least 0")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.load", description=__doc__)
    add = parser.add_argument
    add("--address", default=ADDRESS, help="host:port, or dns:///host:port [%(default)s]")
    text = "round_robin: each client asks all servers of that name in turn [%(default)s]"
    add("--load-balancing", choices=("pick_first", "round_robin"), default="pick_first", help=text)
    add("--model", required=True, help="its name")
    images = parser.add_mutually_exclusive_group(required=True)
    text = "send these images; the version's manifest.json lies beside them"
    images.add_argument("--holdout", type=Path, metavar="FILE.npz", help=text)
    text = "send those of the model's newest version here"
    images.add_argument("--model-repository", type=Path, metavar="DIR", help=text)
    add("--clients", type=_positive, default=1, help="each with its connection [%(default)s]")
    add("--rate", type=_amount, default=0.0, help="requests a second; 0: all that are answered [0]")
    add("--duration", type=_amount, default=0.0, metavar="SECONDS", help="0: until SIGTERM [0]")
    add("--requests", type=_count, default=0, help="how many; 0: no limit [0]")
    text = "one label in so many is sent wrong; 0: none [0]"
    add("--wrong-every", type=_count, default=0, metavar="N", help=text)
    add("--no-feedback", action="store_true", help="do not tell the labels")
    text = "how long a request is tried again while nobody answers; then it is lost [%(default)g]"
    add("--retry", type=_amount, default=load.RETRY, metavar="SECONDS", help=text)
    text = "where what was counted is written as JSON; -: to standard output [%(default)s]"
    add("--tally", default="-", metavar="FILE", help=text)
    return parser

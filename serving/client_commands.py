"""`python -m serving.client`: classify image files, tell true labels, show how right models are."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray

import digit_image
from serving.client import ADDRESS, TIMEOUT, Client, ModelQuality, Outcome, RequestFailed

Command = Callable[[Client, argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """0: done; 1: the server failed, refused or was not there; 2: a file or an option is at
    fault."""
    arguments = _parser().parse_args(argv)
    command: Command = arguments.command
    try:
        with Client(arguments.address, credentials=_credentials(arguments.tls_ca)) as client:
            return command(client, arguments)
    except (digit_image.ImageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RequestFailed as error:
        print(f"error: {arguments.address}: {error}", file=sys.stderr)
        return 1


def _credentials(ca: Path | None) -> grpc.ChannelCredentials | None:
    return None if ca is None else grpc.ssl_channel_credentials(ca.read_bytes())


def _classify(client: Client, arguments: argparse.Namespace) -> int:
    images = np.stack([_read(file) for file in arguments.files])
    answer = client.classify(images, arguments.model, timeout=arguments.timeout)
    ids = answer.prediction_ids or ("-",) * len(images)
    rows = zip(arguments.files, answer.labels, answer.probabilities, ids, strict=True)
    for file, label, probabilities, prediction_id in rows:
        row = [str(file), label, f"{probabilities.max():.4f}"]
        print("\t".join([*row, prediction_id] if arguments.ids else row))
    return 0


def _feedback(client: Client, arguments: argparse.Namespace) -> int:
    told = [arguments.id], [arguments.label]
    (result,) = client.send_feedback(*told, timeout=arguments.timeout)
    if result.outcome not in (Outcome.COUNTED, Outcome.REPEATED):
        print(f"error: {arguments.address}: {result.outcome}: {result.reason}", file=sys.stderr)
        return 1
    print(result.outcome)
    return 0


def _quality(client: Client, arguments: argparse.Namespace) -> int:
    found = client.quality(arguments.model, arguments.version, timeout=arguments.timeout)
    print("\n\n".join("\n".join(described(each)) for each in found) or "no model with labels")
    return 0


def described(each: ModelQuality) -> Iterator[str]:
    """Lines that say all that is known of a version."""
    yield f"{each.model} version {each.version}"
    if each.accuracy:
        interval = f"95% interval {each.accuracy.low:.4f} to {each.accuracy.high:.4f}"
        share = f"{each.accuracy.value:.4f}  ({interval})"
        yield f"  accuracy    {share}, {each.correct_count} of {each.feedback_count} labels"
    else:
        yield "  accuracy    no labels yet"
    if each.holdout_accuracy is not None:
        yield f"  holdout     {each.holdout_accuracy:.4f}"
    if each.probe_accuracy is not None:
        passed = "passed" if each.probe_passed else "failed"
        yield f"  probe       {each.probe_accuracy:.4f}  ({passed})"
    if each.estimated_accuracy is not None:
        reliable = "" if each.estimate_reliable else "  (unreliable: the inputs drifted)"
        yield f"  estimated   {each.estimated_accuracy:.4f}{reliable}"
    yield from _drift(each)
    yield from _matrix(each)


def _drift(each: ModelQuality) -> Iterator[str]:
    if each.drift:
        indices = sorted(each.drift.population_stability_index.items())
        listed = ", ".join(f"{feature} {value:.3f}" for feature, value in indices) or "too few rows"
        window = f"{each.drift.rows} rows in {each.drift.window_seconds:g} s"
        yield f"  drift       {'YES' if each.drift.drifted else 'no'}: {listed}  ({window})"


def _matrix(each: ModelQuality) -> Iterator[str]:
    """A row for each truth, a column for each prediction that there was."""
    if not each.confusion:
        return
    truths = sorted({truth for truth, _ in each.confusion}, key=_naturally)
    columns = sorted({predicted for _, predicted in each.confusion}, key=_naturally)
    width = max(map(len, (*columns, *map(str, each.confusion.values())))) + 2
    first = max(map(len, (*truths, "truth"))) + 2
    yield ""
    yield f"  {'truth':<{first}}predicted"
    yield f"  {'':<{first}}" + "".join(f"{name:>{width}}" for name in columns)
    for truth in truths:
        counts = (each.confusion.get((truth, predicted), 0) for predicted in columns)
        yield f"  {truth:<{first}}" + "".join(f"{count or '.':>{width}}" for count in counts)


def _naturally(name: str) -> tuple[bool, int, str]:
    """Numbers by their value, then the rest, `other` among them."""
    number = name.isascii() and name.isdigit()
    return not number, int(name) if number else 0, name


def _read(file: Path) -> NDArray[np.uint8]:
    """One file as MNIST would have held it; ImageError names the file."""
    try:
        return digit_image.normalise(digit_image.read_image(file))
    except digit_image.ImageError as error:
        text = str(error)
        raise digit_image.ImageError(text if str(file) in text else f"{file}: {text}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving.client", description="Ask a running server."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, text: str, run: Command) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=run)
        added.add_argument("--address", default=ADDRESS, help="host:port [%(default)s]")
        text = "go by TLS, to a server whose certificate one of these has signed, in PEM"
        added.add_argument("--tls-ca", type=Path, metavar="FILE", help=text)
        text = "seconds for the answer [%(default)g]"
        added.add_argument("--timeout", type=float, default=TIMEOUT, help=text)
        return added

    classify = command("classify", "print file, label and probability for each image", _classify)
    classify.add_argument("files", nargs="+", type=Path, metavar="FILE", help="PNG or JPEG")
    classify.add_argument("--model", required=True, help="name of the model")
    classify.add_argument(
        "--ids", action="store_true", help="print each prediction's id as well, for `feedback`"
    )
    feedback = command("feedback", "tell the true label of a prediction", _feedback)
    feedback.add_argument("id", metavar="ID", help="as `classify --ids` prints it")
    feedback.add_argument("label", metavar="LABEL", help="name of the true class, such as 7")
    quality = command("quality", "show how right each version was, by what it was told", _quality)
    quality.add_argument("--model", default="", help="of this model only")
    quality.add_argument("--version", default="", help="of this version only")
    return parser

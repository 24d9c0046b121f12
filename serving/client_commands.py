"""`python -m serving.client`, or `digits`: classify, tell true labels, look at models, measure.

Exit status 0: done. 1: the server failed, refused or was not there. 2: a file or an option is at
fault. 130: interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

import digit_image
from serving import client_bench
from serving.client import Client
from serving.client_channel import Target, Tls, target
from serving.client_described import described
from serving.client_files import Unreadable, found, read
from serving.client_options import STATUSES, add_bench, add_classify, add_connection, add_watch
from serving.client_output import complain, output, print_json, progress
from serving.client_types import ModelQuality, Outcome, Prediction, RequestFailed
from serving.client_watch import watch

Command: TypeAlias = Callable[[argparse.Namespace], int]
_Answer: TypeAlias = tuple[str, Prediction | Unreadable]  # a file, and what it is

# Files that one request has at most, so that the first answers are there soon.
_FILES_PER_REQUEST = 16
_INTERRUPTED, _BROKEN_PIPE = 130, 141  # as of a process that SIGINT or SIGPIPE ends


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; what it prints last is why it failed, in one line."""
    arguments = _parser().parse_args(argv)
    command: Command = arguments.command
    try:
        return command(arguments)
    except BrokenPipeError:  # who reads it has enough; nor does Python complain as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except (digit_image.ImageError, OSError, ValueError) as error:
        complain(str(error))
        return 2
    except RequestFailed as error:
        complain(f"{arguments.address}: {error}")
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED


def _client(arguments: argparse.Namespace) -> Client:
    return Client(arguments.address, tls=_tls(arguments), token=_token(arguments))


def _target(arguments: argparse.Namespace) -> Target:
    return target(arguments.address, tls=_tls(arguments), token=_token(arguments))


def _tls(arguments: argparse.Namespace) -> Tls | bool:
    files = (arguments.tls_ca, arguments.tls_certificate, arguments.tls_key)
    return Tls(*files) if any(files) else arguments.tls


def _token(arguments: argparse.Namespace) -> str | None:
    file: Path | None = arguments.token_file
    return None if file is None else file.read_text(encoding="utf-8").strip()


@dataclass(frozen=True, slots=True)
class _Asked:
    """Answers the images of some files; several threads ask at the same time."""

    client: Client
    model: str
    version: str
    timeout: float
    reached: threading.Event = field(default_factory=threading.Event)

    def __call__(self, files: Sequence[str]) -> list[_Answer]:
        """In their order."""
        images = {file: read(file) for file in files}
        good = [image for image in images.values() if not isinstance(image, Unreadable)]
        predictions = iter(self._classify(good) if good else ())
        return [
            (file, image if isinstance(image, Unreadable) else next(predictions))
            for file, image in images.items()
        ]

    def _classify(self, images: list[NDArray[np.uint8]]) -> Iterator[Prediction]:
        if not self.reached.is_set():
            self.client.server(timeout=self.timeout)  # one that was never there is not waited for
            self.reached.set()
        answer = self.client.classify(
            np.stack(images), self.model, version=self.version, timeout=self.timeout
        )
        return iter(answer)


def _classify(arguments: argparse.Namespace) -> int:
    """Files that are no images fail none of the others."""
    files = list(dict.fromkeys(found(arguments.files)))
    columns = ("file", "label", "probability", *(("prediction_id",) if arguments.ids else ()))
    told, unreadable = output(columns, arguments.json), 0
    with closing(_answers(arguments, files)) as answers:
        try:
            for file, answer in answers:
                if isinstance(answer, Unreadable):
                    unreadable += 1
                    complain(answer.reason)
                else:
                    ids = (answer.prediction_id,) if arguments.ids else ()
                    told.row((file, answer.label, answer.probability, *ids), _more(answer))
        finally:
            told.end()
    return 2 if unreadable else 0


def _answers(arguments: argparse.Namespace, files: Sequence[str]) -> Generator[_Answer, None, None]:
    """As they come, in the order of the files; several requests are in flight."""
    with (
        _client(arguments) as client,
        ThreadPoolExecutor(arguments.concurrency) as pool,
        progress() as bar,
    ):
        ask = _Asked(client, arguments.model, arguments.version, arguments.timeout)
        task = bar.add_task(arguments.model, total=len(files))
        for answers in pool.map(ask, _parts(files)):  # which, left early, cancels what is not begun
            yield from answers
            bar.advance(task, len(answers))


def _parts(files: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(files), _FILES_PER_REQUEST):
        yield files[start : start + _FILES_PER_REQUEST]


def _more(answer: Prediction) -> dict[str, object]:
    return {
        "model": answer.model,
        "version": answer.version,
        "probabilities": dict(answer.probabilities),
        "prediction_id": answer.prediction_id,
    }


def _feedback(arguments: argparse.Namespace) -> int:
    with _client(arguments) as client:
        client.server(timeout=arguments.timeout)
        told = [arguments.id], [arguments.label]
        (result,) = client.send_feedback(*told, timeout=arguments.timeout)
    if result.outcome not in (Outcome.COUNTED, Outcome.REPEATED):
        complain(f"{arguments.address}: {result.outcome}: {result.reason}")
        return 1
    print(result.outcome)
    return 0


def _quality(arguments: argparse.Namespace) -> int:
    with _client(arguments) as client:
        client.server(timeout=arguments.timeout)
        known = client.quality(arguments.model, arguments.version, timeout=arguments.timeout)
    if arguments.json:
        for each in known:
            print_json(_quality_as_json(each))
    else:
        print("\n\n".join("\n".join(described(each)) for each in known) or "no model with labels")
    return 0


def _quality_as_json(each: ModelQuality) -> dict[str, object]:
    cells = [
        {"truth": truth, "predicted": predicted, "count": count}
        for (truth, predicted), count in each.confusion.items()
    ]
    return {**dataclasses.asdict(dataclasses.replace(each, confusion={})), "confusion": cells}


def _models(arguments: argparse.Namespace) -> int:
    told = output(("model", "version", "state", "reason"), arguments.json)
    with _client(arguments) as client:
        client.server(timeout=arguments.timeout)
        for each in client.models(timeout=arguments.timeout):
            told.row((each.name, each.version, each.state, each.reason))
    told.end()
    return 0


def _watch(arguments: argparse.Namespace) -> int:
    with _client(arguments) as client:
        client.server(timeout=arguments.timeout)
        return watch(client, arguments.interval, arguments.count, arguments.json, arguments.timeout)


def _bench(arguments: argparse.Namespace) -> int:
    plan = client_bench.Plan(
        model=arguments.model,
        version=arguments.version,
        rows=arguments.rows,
        concurrency=arguments.concurrency,
        rate=arguments.rate,
        seconds=arguments.seconds,
        connections=arguments.connections,
        timeout=arguments.timeout,
        images=_images(arguments.files) if arguments.files else None,
    )
    measured = client_bench.measure(_target(arguments), plan)
    if arguments.json:
        print_json(client_bench.as_json(measured))
    else:
        utf8 = (sys.stdout.encoding or "").lower().startswith("utf")
        print("\n".join(client_bench.described(measured, "█" if utf8 else "#")))
    return 0 if measured.latencies else 1


def _images(files: Sequence[str]) -> NDArray[np.uint8]:
    images = [read(file) for file in found(files)]
    for image in images:
        if isinstance(image, Unreadable):
            raise digit_image.ImageError(image.reason)
    return np.stack([image for image in images if not isinstance(image, Unreadable)])


def _parser() -> argparse.ArgumentParser:
    name = "digits" if Path(sys.argv[0]).name == "digits" else "python -m serving.client"
    parser = argparse.ArgumentParser(
        prog=name, description="Ask a running server.", epilog=STATUSES
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, text: str, run: Command) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = commands.add_parser(
            name, help=text, description=text, epilog=STATUSES
        )
        added.set_defaults(command=run)
        add_connection(added)
        return added

    add_classify(command("classify", "say which digit each image is of", _classify))
    feedback = command("feedback", "tell the true label of a prediction", _feedback)
    feedback.add_argument("id", metavar="ID", help="as `classify --ids` prints it")
    feedback.add_argument("label", metavar="LABEL", help="name of the true class, such as 7")
    quality = command("quality", "show how right each version was, by what it was told", _quality)
    quality.add_argument("--model", default="", help="of this model only")
    quality.add_argument("--version", default="", help="of this version only")
    models = command("models", "list versions, whether they are served, and why not", _models)
    add_watch(watched := command("watch", "show what each model does, live", _watch))
    add_bench(measured := command("bench", "measure how long answers take", _bench))
    for each in (quality, models, watched, measured):
        each.add_argument("--json", action="store_true", help="print JSON, an object on each line")
    return parser

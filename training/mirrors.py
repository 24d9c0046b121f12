"""Where MNIST is published, and which of its mirrors answers."""

from __future__ import annotations

import http.client
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from training.idx import MNIST_MD5


@dataclass(frozen=True, slots=True)
class Published:
    """Where files are published, as <mirror><stem>.gz, and the md5 of each one's content."""

    mirrors: tuple[str, ...]
    md5: Mapping[str, str]


MNIST = Published(
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    md5=MNIST_MD5,
)


def first_answering(published: Published, timeout: float) -> str | None:
    """The mirror that first confirms within timeout seconds that it has the files, if any.

    All are asked at once, in threads that are left behind: a name look-up knows no timeout.
    """
    stem = next(iter(published.md5))
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for mirror in published.mirrors:
        arguments = (mirror, f"{mirror}{stem}.gz", timeout, answers)
        threading.Thread(target=_ask, args=arguments, daemon=True).start()
    deadline = time.monotonic() + timeout
    for _ in published.mirrors:
        try:
            mirror_or_none = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return None
        if mirror_or_none is not None:
            return mirror_or_none
    return None


def _ask(mirror: str, url: str, timeout: float, answers: queue.SimpleQueue[str | None]) -> None:
    request = urllib.request.Request(url, method="HEAD")
    try:  # mirrors are constants, of https
        with urllib.request.urlopen(request, timeout=timeout):  # nosec B310
            answers.put(mirror)
    except urllib.error.HTTPError as fault:
        fault.close()
        answers.put(None)
    except (OSError, http.client.HTTPException):
        answers.put(None)

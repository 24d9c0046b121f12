"""All the targets by name, and how many cases of each are recorded."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.fuzz import calls, configuration, images, messages, repository, web
from benchmarks.fuzz.running import Opened


class Recorded(NamedTuple):
    """A target, and how many cases make a full run of it."""

    opened: Opened
    cases: int


TARGETS = {
    "messages": Recorded(messages.opened, 1_000_000),
    "calls": Recorded(calls.opened, 100_000),
    "images": Recorded(images.opened, 100_000),
    "bodies": Recorded(web.opened, 100_000),
    "http": Recorded(web.socket_opened, 20_000),
    "manifests": Recorded(repository.manifests_opened, 100_000),
    "versions": Recorded(repository.versions_opened, 1_000),
    "configuration": Recorded(configuration.opened, 20_000),
}

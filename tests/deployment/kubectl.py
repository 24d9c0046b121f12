"""A cluster, asked and told through kubectl, or what else KUBECTL in the environment is.

Every call has a time limit. Knows nothing of what is deployed.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

CALL_TIMEOUT = 60.0  # seconds
PAUSE = 0.3  # between looks at a condition

Json = dict[str, Any]


class ClusterError(Exception):
    """kubectl failed or did not end, or what was waited for did not come."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """One namespace of it."""

    command: tuple[str, ...]
    namespace: str

    def run(self, *arguments: str, stdin: str = "", timeout: float = CALL_TIMEOUT) -> str:
        """kubectl's standard output. ClusterError, with what it said, where it failed."""
        command = [*self.command, f"--namespace={self.namespace}", *arguments]
        try:
            done = subprocess.run(
                command, input=stdin, capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired as error:
            raise ClusterError(f"{shlex.join(command)}: {error}") from None
        if done.returncode:
            raise ClusterError(f"{shlex.join(command)}: {done.stderr}{done.stdout}")
        return done.stdout

    def get(self, *arguments: str) -> Json:
        """An object, or a list of them under `items`."""
        found: Json = json.loads(self.run("get", *arguments, "--output=json"))
        return found

    def raw(self, path: str) -> str:
        """What the API answers to a path."""
        return self.run("get", "--raw", path)

    def create(self, manifest: Mapping[str, object]) -> None:
        """Make an object."""
        self.run("create", "--filename=-", stdin=json.dumps(manifest))

    def pods(self, selector: str) -> list[Json]:
        """Those that match, but for those that are being deleted."""
        items = self.get("pods", f"--selector={selector}")["items"]
        return [pod for pod in items if "deletionTimestamp" not in pod["metadata"]]

    def wait(self, condition: str, *objects: str, timeout: float) -> None:
        """`kubectl wait` for a condition of theirs, such as condition=Ready."""
        limit = f"--timeout={timeout:.0f}s"
        self.run("wait", f"--for={condition}", *objects, limit, timeout=timeout + CALL_TIMEOUT)

    def minor_version(self) -> int:
        """29 of 1.29."""
        told = json.loads(self.run("version", "--output=json"))["serverVersion"]["minor"]
        return int("".join(filter(str.isdigit, told)))  # some add a plus

    def diagnosis(self) -> str:
        """What is there, what became of it, and the ends of all logs."""
        asked = (
            ("get", "all,persistentvolumeclaims", "--output=wide"),
            ("get", "events", "--sort-by=.lastTimestamp"),
            ("describe", "pods"),
        )
        return "\n".join([*(self._told(*each) for each in asked), *self._logs()])

    def _logs(self) -> list[str]:
        names = self._told("get", "pods", "--output=name").split()
        options = ("--all-containers", "--prefix", "--tail=100")
        return [self._told("logs", name, *options) for name in names if name.startswith("pod/")]

    def _told(self, *arguments: str) -> str:
        """What kubectl says, be it an error: a diagnosis must not fail itself."""
        try:
            return self.run(*arguments)
        except ClusterError as error:
            return str(error)


def cluster(namespace: str) -> Cluster:
    """The one that KUBECTL reaches, by default as kubectl does."""
    return Cluster(tuple(shlex.split(os.environ.get("KUBECTL", "kubectl"))), namespace)


def until(what: str, holds: Callable[[], object], timeout: float = CALL_TIMEOUT) -> None:
    """Look until it holds. ClusterError, which says what did not, after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not holds():
        if time.monotonic() > end:
            raise ClusterError(f"not within {timeout:.0f} s: {what}")
        time.sleep(PAUSE)

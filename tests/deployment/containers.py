"""The project's images in containers, networks and volumes that are gone afterwards.

Everything gets a name that nothing else has, so that tests can run beside other work.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TIMEOUT = 60.0  # seconds for one docker command
POLL = 0.1  # seconds between two looks
ANYBODY = "12345:12345"  # a user that no image knows
HARDENED = (
    *("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL"),
    *("--security-opt=no-new-privileges", "--pids-limit=256"),
)


def version() -> str:
    """The project's, which tags its images."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["version"])


def image(name: str) -> str:
    """digits-NAME with the tag that is tested: IMAGE_TAG, or the project's version."""
    return f"digits-{name}:{os.environ.get('IMAGE_TAG') or version()}"


def docker(*arguments: str, timeout: float = TIMEOUT) -> str:
    """What the command prints; CalledProcessError, with what it complains of as a note."""
    return printed(run(*arguments, timeout=timeout))


def printed(result: subprocess.CompletedProcess[str]) -> str:
    """What a command printed; CalledProcessError, with what it complained of as a note."""
    try:
        result.check_returncode()
    except subprocess.CalledProcessError as error:
        error.add_note(result.stdout + result.stderr)
        raise
    return result.stdout


def run(*arguments: str, timeout: float = TIMEOUT) -> subprocess.CompletedProcess[str]:
    """The command's end, whatever it is."""
    command = ["docker", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def inspect(kind: str, name: str) -> dict[str, Any]:
    """What docker knows of an image, a container or a network."""
    (told,) = json.loads(docker(kind, "inspect", name))
    return dict(told)


def until(condition: Callable[[], bool], what: str, timeout: float = TIMEOUT) -> None:
    """Wait for it; AssertionError, saying what did not come, when it is too late."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout:g} s: {what}"
        time.sleep(POLL)


def unique(kind: str) -> str:
    """A name that nothing has."""
    return f"digits-test-{kind}-{secrets.token_hex(4)}"


@dataclass(frozen=True, slots=True)
class Container:
    """One that was started, until the block it belongs to is left."""

    name: str

    @property
    def state(self) -> dict[str, Any]:
        """Status, ExitCode, and Health where the image has a check."""
        return dict(inspect("container", self.name)["State"])

    @property
    def health(self) -> str:
        """starting, healthy or unhealthy."""
        return str(self.state["Health"]["Status"])

    @property
    def logs(self) -> str:
        """Both streams."""
        result = run("logs", self.name)
        return result.stdout + result.stderr

    def wait_until(self, health: str) -> None:
        """AssertionError, with its logs, where that does not come, or it has ended."""
        until(
            lambda: self.health == health or self.state["Status"] != "running", f"{health} {self}"
        )
        assert self.health == health, self.logs

    def execute(self, *command: str) -> str:
        """What a further process in it prints."""
        return docker("exec", self.name, *command)

    def port(self, inside: int) -> str:
        """host:port where one of its ports is published."""
        return docker("port", self.name, f"{inside}/tcp").splitlines()[0]

    def stop(self, grace: int) -> float:
        """Tell it to end; the seconds that it took."""
        start = time.monotonic()
        docker("stop", "-t", str(grace), self.name, timeout=grace + TIMEOUT)
        return time.monotonic() - start


@contextmanager
def container(name: str, *options: str, command: Sequence[str] = ()) -> Iterator[Container]:
    """The image digits-NAME, run in the background with docker's options."""
    own = unique(name)
    try:
        docker("run", "--detach", f"--name={own}", *options, image(name), *command)
        yield Container(own)
    finally:
        run("rm", "--force", "--volumes", own)


def once(
    name: str, *options: str, command: Sequence[str] = (), timeout: float = TIMEOUT
) -> subprocess.CompletedProcess[str]:
    """The image digits-NAME, run until it ends by itself; it is removed also when it does not."""
    own = unique(name)
    try:
        return run("run", f"--name={own}", *options, image(name), *command, timeout=timeout)
    finally:
        run("rm", "--force", "--volumes", own)


@contextmanager
def internal_network() -> Iterator[str]:
    """One from which nothing outside can be reached."""
    name = unique("network")
    docker("network", "create", "--internal", name)
    try:
        yield name
    finally:
        docker("network", "rm", name)


@contextmanager
def volume() -> Iterator[str]:
    """An empty one: whoever mounts it first has it look like his image's directory."""
    name = docker("volume", "create", unique("volume")).strip()
    try:
        yield name
    finally:
        docker("volume", "rm", "--force", name)

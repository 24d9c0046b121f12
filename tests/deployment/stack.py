"""docker-compose.yml under a name and on ports of its own, until all of it is removed.

What it changes is written to an override file: how often Prometheus looks, and where MNIST is.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from containers import ROOT, TIMEOUT, docker, inspect, printed, run, unique, version

from deploy.prometheus_server import Prometheus, configuration, free_port

MODEL = "linear"
# For threes against sevens, and for ten digits: the quickest, which tests wait for.
TRAINED = ("linear", "pixel_similarity")
PUBLISHED = ("linear", "pixel_similarity_0_9")
PORTS = ("GRPC_PORT", "METRICS_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")
LABEL = "com.docker.compose.project"


@dataclass(frozen=True, slots=True)
class Stack:
    """One project of compose; every command has a time-out, and is printed with what it took."""

    name: str
    files: tuple[Path, ...]
    environment: dict[str, str]
    data: tuple[str, ...]  # options of training where there is no MNIST

    @property
    def address(self) -> str:
        """Where the server answers this machine."""
        return f"localhost:{self.environment['GRPC_PORT']}"

    @property
    def prometheus(self) -> Prometheus:
        """The one of the stack."""
        return Prometheus(f"http://127.0.0.1:{self.environment['PROMETHEUS_PORT']}")

    def compose(self, *arguments: str, timeout: float = TIMEOUT) -> str:
        """What the command prints; CalledProcessError, with what it complains of as a note."""
        files = [f"--file={file}" for file in self.files]
        command = ["docker", "compose", "--env-file=/dev/null", f"--project-name={self.name}"]
        start = time.monotonic()
        result = subprocess.run(
            [*command, *files, *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        seconds = time.monotonic() - start
        print(f"docker compose {' '.join(arguments)}: {result.returncode}, {seconds:.1f} s")
        return printed(result)

    def containers(self) -> dict[str, dict[str, Any]]:
        """What docker knows of each service's container."""
        names = docker(
            *("ps", "--all", "--quiet", f"--filter=label={LABEL}={self.name}")
        ).splitlines()
        told = (inspect("container", name) for name in names)
        return {each["Config"]["Labels"]["com.docker.compose.service"]: each for each in told}

    def logs(self, service: str) -> str:
        """All that it said."""
        return self.compose("logs", "--no-log-prefix", "--no-color", service)

    def train(self, *options: str) -> None:
        """Have the training job publish what the options say."""
        self.compose("run", "--rm", "--no-TTY", "train", *options, *self.data, timeout=120)

    def load(self, *options: str) -> dict[str, Any]:
        """Have a container of its own send labelled digits to the server by its name; the tally."""
        command = ["deploy.load", "--address=dns:///serving:8001", f"--model={MODEL}"]
        command += ["--model-repository=/models", *options]
        return tally(self.compose("run", "--rm", "--no-deps", "--no-TTY", "load", *command))

    def left(self) -> list[str]:
        """Containers, volumes and networks that there are of it."""
        kinds = (("ps", "--all"), ("volume", "ls"), ("network", "ls"))
        shown = (docker(*kind, "--quiet", f"--filter=label={LABEL}={self.name}") for kind in kinds)
        return [line for text in shown for line in text.splitlines()]

    def remove(self) -> None:
        """All of it, also what is still busy."""
        every = ("--profile=*", "down", "--volumes", "--remove-orphans")
        self.compose(*every, timeout=120)


def tally(logs: str) -> dict[str, Any]:
    """What a load counted, which is the last that it prints."""
    found: dict[str, Any] = json.loads(logs[logs.index("{\n") :])
    return found


@contextmanager
def stack(directory: Path) -> Iterator[Stack]:
    """Nothing of it runs yet; it is removed in any case, after a fault with what it said last."""
    mnist = os.environ.get("MNIST_DIR")
    override = directory / "override.yml"
    override.write_text(yaml.safe_dump(_override(directory, mnist)))
    files = (ROOT / "docker-compose.yml", override)
    data = () if mnist else ("--dataset=digits",)
    started = Stack(unique("compose"), files, _environment(), data)
    try:
        yield started
    except BaseException:
        shown = run("compose", f"--project-name={started.name}", "logs", "--tail=40")
        print(shown.stdout, shown.stderr)
        raise
    finally:
        started.remove()


def _environment() -> dict[str, str]:
    """What compose fills in: ports that are free, and models that are quickly trained."""
    inherited = ("PATH", "HOME", "DOCKER_HOST", "DOCKER_CONFIG", "XDG_RUNTIME_DIR")
    given = {name: os.environ[name] for name in inherited if name in os.environ}
    return {
        **given,
        **{name: str(free_port(0)) for name in PORTS},
        "DIGITS_VERSION": os.environ.get("IMAGE_TAG") or version(),
        "TRAIN_MODELS": TRAINED[0],
        "TRAIN_TEN_DIGITS": TRAINED[1],
        "LOAD_MODEL": MODEL,
        "LOAD_RATE": "50",
    }


def _override(directory: Path, mnist: str | None) -> dict[str, object]:
    """Prometheus looks each second; training has MNIST from here, or does not look for it."""
    (directory / "prometheus.yml").write_text(configuration("1s"))
    target = "/etc/prometheus/prometheus.yml"
    prometheus = {"volumes": [f"{directory / 'prometheus.yml'}:{target}:ro"]}
    if mnist:
        train: dict[str, object] = {"environment": {"MNIST_DIR": "/mnist"}}
        train["volumes"] = [f"{Path(mnist).resolve()}:/mnist:ro"]
    else:
        models = [f"--models={TRAINED[0]}", f"--ten-digits={TRAINED[1]}", "--keep=good"]
        train = {"command": [*models, "--dataset=digits"]}
    return {"services": {"prometheus": prometheus, "train": train}}

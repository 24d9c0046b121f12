"""A real Prometheus with the rules of deploy/prometheus, in a process of its own, to be asked.

Everything is as committed but for the targets and how often they are looked at. Knows no metric.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from deploy.ports import reserved_port

CONFIGURATION = Path(__file__).parent / "prometheus"
HOW_TO_GET_IT = (
    "prometheus is not on the PATH: `apt-get install prometheus` on Debian and Ubuntu,"
    " `brew install prometheus` on macOS, or a binary from https://prometheus.io/download/"
)
START_TIMEOUT = 60.0  # seconds
SCRAPE_TIMEOUT = 30.0
QUERY_TIMEOUT = 10.0
# Prometheus moves a scrape's time by so much, where that makes its times regular.
_TIMESTAMP_TOLERANCE = 0.02


class PrometheusError(Exception):
    """It is not installed, did not start, or refused a query; the message says which."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One series' latest value."""

    labels: dict[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that records or alerts; `error` is empty where it could be evaluated."""

    name: str
    records: bool
    error: str


@dataclass(frozen=True, slots=True)
class RuleGroup:
    """Rules that are evaluated one after the other."""

    evaluated: float  # when the latest evaluation began, in seconds since 1970
    rules: tuple[Rule, ...]


class Prometheus:
    """The HTTP API of a running server (https://prometheus.io/docs/prometheus/latest/querying/api/)."""

    def __init__(self, url: str, read: Callable[[str], str] | None = None) -> None:
        """`read` is how what is at a URL is had, where it cannot be reached directly."""
        self.url = url
        self._read = read or _read

    def query(self, expression: str) -> list[Sample]:
        """What an expression is now; a scalar is one sample without labels. PrometheusError."""
        data = self._get("query", query=expression)
        if data["resultType"] == "scalar":
            return [Sample({}, float(data["result"][1]))]
        return [Sample(each["metric"], float(each["value"][1])) for each in data["result"]]

    def value(self, expression: str) -> float:
        """The only sample's value, NaN where there is none; PrometheusError with several."""
        samples = self.query(expression)
        if len(samples) > 1:
            raise PrometheusError(f"{expression} has {len(samples)} values, not one")
        return samples[0].value if samples else math.nan

    def alerts(self, name: str, **labels: str) -> set[str]:
        """States that alerts of that name are in now, with these labels: pending, firing."""
        matchers = "".join(f',{label}="{value}"' for label, value in labels.items())
        samples = self.query(f'ALERTS{{alertname="{name}"{matchers}}}')
        return {sample.labels["alertstate"] for sample in samples}

    def rule_groups(self) -> list[RuleGroup]:
        """All groups of rules, and what became of them when they were last evaluated."""
        groups = self._get("rules")["groups"]
        return [
            RuleGroup(
                _seconds(group["lastEvaluation"]),
                tuple(
                    Rule(rule["name"], rule["type"] == "recording", rule.get("lastError", ""))
                    for rule in group["rules"]
                ),
            )
            for group in groups
        ]

    def wait_for_scrape(self, job: str = "digits") -> None:
        """Until every target's latest scrape began after this was called, and worked; else
        PrometheusError."""
        asked = time.time() + _TIMESTAMP_TOLERANCE  # the clock that Prometheus has, too
        up = f'up{{job="{job}"}}'  # of a bare selector only does timestamp() tell the sample's
        end = time.monotonic() + SCRAPE_TIMEOUT
        while not (self.value(f"min(timestamp({up}))") > asked and self.value(f"min({up})") == 1):
            if time.monotonic() > end:
                problems = "; ".join(self._scrape_problems())
                raise PrometheusError(f"no scrape within {SCRAPE_TIMEOUT:.0f} s: {problems}")
            time.sleep(0.1)

    def _scrape_problems(self) -> Iterator[str]:
        for target in self._get("targets", state="active")["activeTargets"]:
            yield f"{target['scrapeUrl']}: {target['lastError'] or target['health']}"

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        return json.loads(self._read(url))["data"]


def _read(url: str) -> str:
    """What it answers. PrometheusError."""
    try:  # a Prometheus that was started here, on loopback
        with urllib.request.urlopen(url, timeout=QUERY_TIMEOUT) as reply:  # nosec B310
            text: str = reply.read().decode()
            return text
    except urllib.error.HTTPError as error:  # its body says what is wrong with the query
        with error:
            raise PrometheusError(f"{url}: {error.read().decode()}") from None
    except OSError as error:
        raise PrometheusError(f"{url}: {error}") from None


def executable() -> str:
    """The program's path. PrometheusError, which says how to get it, where there is none."""
    path = shutil.which("prometheus")
    if not path:
        raise PrometheusError(HOW_TO_GET_IT)
    return path


@contextmanager
def prometheus(
    targets: Sequence[str], *, port: int = 0, interval: str = "1s"
) -> Iterator[Prometheus]:
    """Run one that scrapes these host:port, until left; port 0 is any. PrometheusError."""
    program = executable()
    with tempfile.TemporaryDirectory(prefix="digits-prometheus-") as name:
        directory = Path(name)
        _configure(directory, targets, interval)
        address = f"127.0.0.1:{free_port(port)}"
        command = [program, f"--config.file={directory / 'prometheus.yml'}"]
        command += [f"--storage.tsdb.path={directory / 'data'}", f"--web.listen-address={address}"]
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(command, stderr=log, stdout=log)
        try:
            _wait_until_ready(process, f"http://{address}", directory / "log")
            yield Prometheus(f"http://{address}")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _configure(directory: Path, targets: Sequence[str], interval: str) -> None:
    """The committed files, with other targets and intervals."""
    for file in CONFIGURATION.glob("*.yml"):
        shutil.copy(file, directory)
    (directory / "targets.json").write_text(json.dumps([{"targets": list(targets)}]))
    (directory / "prometheus.yml").write_text(configuration(interval))


def configuration(interval: str) -> str:
    """The committed prometheus.yml, with another interval of scrapes and of evaluations."""
    path = CONFIGURATION / "prometheus.yml"
    pattern = r"(?m)^(  (?:scrape|evaluation)_interval): .*$"
    text, replaced = re.subn(pattern, rf"\1: {interval}", path.read_text())
    if replaced != 2:
        raise PrometheusError(f"{path}: expected two intervals to replace")
    return text


def is_free(port: int) -> bool:
    """Whether nobody listens there."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def free_port(port: int) -> int:
    """The port, or any that is free for 0. PrometheusError where it is taken."""
    if port and not is_free(port):
        raise PrometheusError(f"port {port} is taken; set PROMETHEUS_PORT")
    return port or reserved_port()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START_TIMEOUT
    while not _ready(url):
        if process.poll() is not None:
            raise PrometheusError(f"prometheus did not start:\n{log.read_text()[-2000:]}")
        if time.monotonic() > end:
            raise PrometheusError(f"{url} was not ready within {START_TIMEOUT:.0f} s")
        time.sleep(0.05)


def _seconds(time_of_day: str) -> float:
    """Since 1970, of RFC 3339 with nanoseconds, which Python does not read."""
    cut = re.sub(r"\.(\d{6})\d*", r".\1", time_of_day)
    return datetime.fromisoformat(cut).timestamp()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=1):  # nosec B310 # as above
            return True
    except OSError:
        return False

"""What a supervisor and its workers say to each other. Each is sent by who its docstring names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.config import ServerConfig


@dataclass(frozen=True, slots=True)
class Change:
    """A method of Admin and its arguments; a later one with the same key takes its place."""

    method: str
    arguments: tuple[Any, ...]
    key: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker is started with. A replacement listens when it is ready, and not before."""

    config: ServerConfig
    counters: Path
    number: int
    replacement: bool
    journal: tuple[Change, ...]  # what was changed since the server started
    group_ready: bool
    feedback_keys: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Listening:
    """Worker: it answers, and loads its models now."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Worker: it cannot start."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ready:
    """Worker: its models are loaded."""


@dataclass(frozen=True, slots=True)
class Do:
    """Worker: have all workers make a change. Supervisor: make it."""

    number: int
    change: Change


@dataclass(frozen=True, slots=True)
class Done:
    """Worker: it has made the change, or failed to."""

    number: int
    error: Exception | None


@dataclass(frozen=True, slots=True)
class Told:
    """Supervisor: all workers have made the change, or one failed to."""

    number: int
    error: Exception | None


@dataclass(frozen=True, slots=True)
class GroupReady:
    """Supervisor: all workers are ready."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Supervisor: drain, and end."""

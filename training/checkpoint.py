"""Checkpoints: a killed run goes on from its last finished epoch exactly as it would have."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


class CheckpointError(Exception):
    """A checkpoint that cannot be resumed from; the message names the file and why."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One file holding a run's latest state; `run` is what must be equal for it to be resumed."""

    path: Path
    run: dict[str, Any]  # model, recipe, seed, data checksum, ...

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file in one step, so that a kill leaves the former checkpoint whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("wb") as stream:
            torch.save({"run": self.run, "state": state}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self.path)

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None without a file; CheckpointError where it is another run's."""
        if not self.path.exists():
            return None
        try:
            saved = torch.load(self.path, weights_only=True, map_location="cpu")
            made_by = saved["run"]
        except Exception as error:  # torch raises many kinds for a damaged file
            raise CheckpointError(f"{self.path}: not a readable checkpoint: {error}") from None
        differing = [key for key in self.run if made_by.get(key) != self.run[key]]
        if differing:
            raise CheckpointError(
                f"{self.path}: was made by another run ({', '.join(differing)} differ);"
                " train without --resume, or remove it"
            )
        state: dict[str, Any] = saved["state"]
        return state

    def remove(self) -> None:
        """Forget a finished run."""
        self.path.unlink(missing_ok=True)

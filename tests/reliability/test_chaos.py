"""Faults in a random order under steady load: each request is answered rightly, or fails as was
declared; `make chaos` is the same for longer."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

SECONDS = 60
LIMIT = 240


@pytest.mark.lane
@pytest.mark.parametrize("transport", ["native", "grpcio"])
def test_no_request_is_lost_or_answered_wrongly_whatever_happens(transport: str) -> None:
    command = [sys.executable, "-m", "benchmarks.chaos", f"--seconds={SECONDS}"]
    command += [f"--transport={transport}", "--every-fault"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "violations: 0" in done.stdout

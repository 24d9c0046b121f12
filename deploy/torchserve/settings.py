"""Where TorchServe's settings are, and what they come to with the environment's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_HERE = Path(__file__).parent
HANDLER = _HERE / "handler.py"
BATCHING = _HERE / "model-config.yaml"
CONFIG = _HERE / "config.properties"
LOGGING = _HERE / "log4j2.xml"
STORE = Path("build/torchserve/model-store")


def setting(name: str) -> str:
    """One value, as TorchServe itself takes it: the environment comes first."""
    lines = (line.partition("=") for line in CONFIG.read_text(encoding="utf-8").splitlines())
    configured = {key: value for key, _, value in lines}
    return os.environ.get(f"TS_{name.upper()}", configured[name])


def java() -> str | None:
    """The program, as TorchServe's own launcher finds it; None where there is none."""
    home = os.environ.get("JAVA_HOME")
    return shutil.which("java", path=f"{home}/bin" if home else None)

"""What a measurement was taken on: processor, memory, versions, commit, date."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path


def describe(packages: tuple[str, ...]) -> dict[str, object]:
    """Facts of this machine and of the installed packages, ready for JSON."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "commit": _commit(),
    }


def sentence(machine: dict[str, object]) -> str:
    """One line for the head of a table."""
    versions = machine["versions"]
    assert isinstance(versions, dict)
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB;"
        f" Python {machine['python']}, {listed}; commit {machine['commit']}; {machine['date']}"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent)]
    named = subprocess.run([*git, "describe", "--always"], capture_output=True, text=True)
    # Results of a run before, not committed yet, change nothing of what is measured.
    others = ["diff", "--quiet", "HEAD", "--", ":/", ":(exclude,top)benchmarks/results"]
    changed = subprocess.run([*git, *others], capture_output=True).returncode == 1
    return named.stdout.strip() + ("-dirty" if changed else "")

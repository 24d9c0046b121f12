"""``python -m deploy.lock``: the SHA-256 of each wheel that the server and its client are made of.

Writes deploy/locks/{serving,client}.txt, which pip takes with --require-hashes: versions as in
constraints.txt, wheels for Linux on both processors that images are built for. pip itself tells
which those are; nothing is installed. Training has no such list: which torch it is, and so which
hash, is decided by the index that it comes from, and CUDA's packages come along from some only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCKS = ROOT / "deploy" / "locks"
EXTRAS = {"serving": "serving,tracing,cpu", "client": "client"}
PLATFORMS = (
    ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64"),
    ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64"),
)
TIMEOUT = 600.0  # seconds for one question to the package index
HEADER = "# Written by `make lock`: for pip install --require-hashes --only-binary :all:\n"


def lock(extras: str) -> str:
    """A line for each package, with the hash of its wheel for each platform."""
    own = _report("--constraint", str(ROOT / "constraints.txt"), f"{ROOT}[{extras}]")
    names = sorted(name for name in own if not name.startswith("digits=="))
    hashes: dict[str, set[str]] = defaultdict(set)
    for tags in PLATFORMS:
        flags = [flag for tag in tags for flag in ("--platform", tag)]
        flags += ["--python-version", "3.11", "--only-binary", ":all:", "--no-deps"]
        for name, digest in _report(*flags, *names).items():
            hashes[name].add(digest)
    lines = [
        " \\\n".join([name, *(f"    --hash=sha256:{each}" for each in sorted(hashes[name]))])
        for name in names
    ]
    return HEADER + "\n".join(lines) + "\n"


def _report(*arguments: str) -> dict[str, str]:
    """The hash of each file that pip would install, by name==version; ours has none."""
    with tempfile.TemporaryDirectory() as target:
        report = Path(target, "report.json")
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
        command += ["--quiet", "--dry-run", "--ignore-installed", "--target", target]
        subprocess.run([*command, "--report", str(report), *arguments], check=True, timeout=TIMEOUT)
        told = json.loads(report.read_bytes())["install"]
    return {
        f"{each['metadata']['name']}=={each['metadata']['version']}": each["download_info"]
        .get("archive_info", {})
        .get("hashes", {})
        .get("sha256", "")
        for each in told
    }


def main() -> int:
    """0; pip's failure is told by pip, and raised."""
    LOCKS.mkdir(exist_ok=True)
    for name, extras in EXTRAS.items():
        (LOCKS / f"{name}.txt").write_text(lock(extras), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

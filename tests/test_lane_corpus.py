"""What the lane's tests hold it against is what the Python server does today."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CORPUS = ROOT / "tests" / "lane" / "corpus"
WRITTEN = ("message", "answer", "checks.tsv")


def test_the_committed_corpus_is_what_its_script_writes(tmp_path: Path) -> None:
    script = [sys.executable, "-m", "tests.lane.make_corpus", str(tmp_path)]
    subprocess.run(script, cwd=ROOT, check=True, timeout=60)
    assert _files(tmp_path) == _files(CORPUS)


def _files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for part in WRITTEN
        for path in sorted([directory / part, *(directory / part).glob("*")])
        if path.is_file()
    }

"""What fuzzing found, and some of what it did not, again: each file of corpus/ is a case of the
target that its folder is named after."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fuzz.running import Wrong
from benchmarks.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"


def cases(name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((CORPUS / name).iterdir())}


def test_every_target_has_a_corpus() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found_is_taken_rightly(name: str, caplog: pytest.LogCaptureFixture) -> None:
    wrong = {}
    with TARGETS[name].opened() as target:
        for file, case in cases(name).items():
            try:
                target.judge([case])
            except Wrong as found:
                wrong[file] = str(found)
    assert wrong == {}
    assert [each.getMessage() for each in caplog.records if each.exc_info] == []

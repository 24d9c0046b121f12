"""Bad input of every kind, a little of each; `make fuzz` is the same for longer, and FUZZING.md
says what that came to."""

from __future__ import annotations

import warnings

import pytest

from benchmarks.fuzz.running import run
from benchmarks.fuzz.targets import TARGETS

# Cases of each: some seconds. Others than those of the record, which have passed.
SEED = 2
COUNTS = {
    "messages": 20_000,
    "calls": 2_500,
    "images": 3_000,
    "bodies": 4_000,
    "http": 1_000,
    "manifests": 1_500,
    "versions": 200,
    "configuration": 1_000,
}


def test_every_target_is_here() -> None:
    assert set(COUNTS) == set(TARGETS)


@pytest.mark.parametrize("name", COUNTS)
def test_nothing_bad_is_taken_wrongly(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = run(name, TARGETS[name].opened, SEED, COUNTS[name])
    assert (report.wrong, report.cases) == ("", COUNTS[name])

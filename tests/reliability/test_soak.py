"""The short form of benchmarks/soak: what the server keeps of thirty thousand requests, of every
kind, while a model is reloaded twenty-five times."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Digits, publish_calibrated

from benchmarks.soak.run import Plan, soak
from benchmarks.soak.samples import Sample, judge

# Slices: a quarter to warm up, and a quarter on either side to compare.
SLICES = 8


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory, digits: Digits) -> Path:
    """A classifier with all that a server counts of one."""
    return publish_calibrated(tmp_path_factory.mktemp("source"), digits, digits)


def test_memory_descriptors_and_threads_stay_as_they_are(version: Path, transport: str) -> None:
    requests = {"native": 24_000, "grpcio": 4_000}
    samples = soak(version, Plan(requests[transport], SLICES, SLICES, transport))
    assert judge(samples).faults == (), samples


def test_a_version_that_is_new_costs_no_more_than_what_is_counted_of_it(version: Path) -> None:
    samples = soak(version, Plan(2_000, 2 * SLICES, SLICES, "grpcio", publish=True))
    assert judge(samples, published=True).faults == (), samples


def test_what_grows_is_told_but_what_new_versions_may_cost() -> None:
    flat = [Sample(n, n, 100.0, 90.0, 20, 10) for n in range(20)]
    assert judge(flat).faults == ()
    leaking = [Sample(n, n, 100.0 + n, 90.0, 20 + n // 10, 10 + n // 2) for n in range(20)]
    assert judge(leaking).slope_mb == pytest.approx(1.0)
    assert judge(leaking).faults == (
        "RSS grew by 10.0 MB, and may by 5.0",
        "descriptors grew from 20 to 21",
        "threads grew from 13 to 18",
    )
    assert judge(leaking, published=True).faults == (
        "RSS grew by 10.0 MB, and may by 8.0",
        "threads grew from 13 to 18",
    )

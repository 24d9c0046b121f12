"""Triton's perf_analyzer, unchanged: it reads metadata, config and statistics, and checks them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Digits
from driving import ENVIRONMENTS, SECONDS, serving

pytestmark = pytest.mark.interop

HOME = ENVIRONMENTS / "perf_analyzer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, transport: str) -> Path:
    return tmp_path_factory.mktemp(f"perf_analyzer-{transport}")


@pytest.fixture(scope="module")
def address(folder: Path, digits: Digits, transport: str) -> Iterator[str]:
    """A server for this file's runs."""
    with serving(folder, digits, transport) as address:
        yield address


def analyse(
    folder: Path, address: str, data: dict[str, Any], options: list[str]
) -> subprocess.CompletedProcess[str]:
    """200 requests with the data, in turn; the table is written beside."""
    (library,) = HOME.glob("lib/python3*/site-packages/nvidia/cuda_runtime/lib")
    given = folder / "data.json"
    given.write_text(json.dumps(data))
    command: list[str | Path] = [
        HOME / "bin" / "perf_analyzer",
        "-i",
        "grpc",
        "-u",
        address,
        "-m",
        "classifier",
    ]
    more: list[str | Path] = [
        "--input-data",
        given,
        "-f",
        folder / "table.csv",
        "--request-count",
        "200",
    ]
    return subprocess.run(
        [*command, *more, *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=os.environ | {"LD_LIBRARY_PATH": str(library)},
    )


def table(folder: Path, done: subprocess.CompletedProcess[str]) -> dict[str, float]:
    """The one row of the table; on Debian, libb64.so.0d is in libb64-0d."""
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    with (folder / "table.csv").open() as stream:
        return {name: float(value) for name, value in next(csv.DictReader(stream)).items()}


def images(digits: Digits) -> list[Any]:
    """A three and a seven as perf_analyzer's input data."""
    chosen = [digits.images[digits.classes == label][0] for label in (0, 1)]
    return [{"images": {"content": i.ravel().tolist(), "shape": [28, 28]}} for i in chosen]


def answers(labels: list[int]) -> list[Any]:
    """What perf_analyzer is to compare the output `labels` with."""
    return [{"labels": {"content": [label], "shape": [1]}} for label in labels]


@pytest.mark.parametrize(
    "options",
    [
        ["--concurrency-range", "1"],
        ["--concurrency-range", "8", "-b", "2"],
        ["--concurrency-range", "4", "--streaming", "--async"],
        ["--request-rate-range", "200"],
    ],
    ids=["one at a time", "batches of two", "on a stream", "at a steady rate"],
)
def test_it_measures_and_its_checks_of_the_statistics_hold(
    folder: Path, address: str, digits: Digits, options: list[str]
) -> None:
    row = table(folder, analyse(folder, address, {"data": images(digits)}, options))
    assert row["Inferences/Second"] > 0
    for stage in ("Queue", "Compute Input", "Compute Infer", "Compute Output"):
        assert (stage, row[f"Server {stage}"] >= 0) == (stage, True)
    assert row["Server Compute Infer"] > 0


@pytest.mark.parametrize(("labels", "status"), [([0, 1], 0), ([1, 0], 99)])
def test_it_finds_the_answers_right_and_would_find_them_wrong(
    folder: Path, address: str, digits: Digits, labels: list[int], status: int
) -> None:
    data = {"data": images(digits), "validation_data": answers(labels)}
    done = analyse(folder, address, data, ["--concurrency-range", "2"])
    assert done.returncode == status, f"{done.stdout}{done.stderr}"

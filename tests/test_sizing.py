"""The sizing page says what was measured, and its arithmetic holds."""

from __future__ import annotations

import json

from benchmarks.pages import filled_in
from benchmarks.sizing import (
    CORES_PER_REPLICA,
    PAGE,
    SERVING,
    START,
    UTILISATION,
    Measured,
    figures,
    measured,
    table,
)


def test_the_page_has_the_table_of_the_committed_figures() -> None:
    record = json.loads(SERVING.read_text())
    rows = measured(record)
    page = PAGE.read_text()
    written = table(rows, UTILISATION, CORES_PER_REPLICA) + figures(record)
    assert filled_in(page, START, written) == page
    assert len(rows) == 6


def test_the_page_names_the_commit_that_was_measured() -> None:
    assert json.loads(SERVING.read_text())["compared"]["machine"]["commit"] in PAGE.read_text()


def test_what_is_left_over_takes_one_more() -> None:
    core = Measured("model", "1", 1_000)
    assert [core.units(rate, 0.5) for rate in (1, 500, 501, 100_000)] == [1, 1, 2, 200]
    line = table([core], 0.5, 4).splitlines()[-1]
    assert line == "| model | 1 | 1,000 | 2 (1) | 200 (50) | 2,000 (500) |"

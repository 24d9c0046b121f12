"""README says what was measured: its figures of speed are those of the committed results."""

from __future__ import annotations

import json

from benchmarks.pages import filled_in
from benchmarks.serving.targets import Verdict
from benchmarks.sizing import SERVING
from benchmarks.speed import PAGE, START, table, targets, text


def test_readme_has_the_committed_figures() -> None:
    page = PAGE.read_text(encoding="utf-8")
    record = json.loads(SERVING.read_text(encoding="utf-8"))
    assert filled_in(page, START, text(record)) == page
    assert record["compared"]["machine"]["commit"] in page


def test_a_row_has_the_medians_of_both_models_and_nothing_where_one_was_not_measured() -> None:
    def result(contestant: str, model: str, rate: float) -> dict[str, object]:
        figures = {"requests_per_second": rate, "cpu_us": 1e6 / rate, "alone_p50_ms": 0.2}
        return {"contestant": contestant, "model": model, "rounds": [figures] * 3}

    alone = {"images_per_second": {"1": 2e4, "32": 3e6, "256": 1e6}}
    results = [
        result("digits", "linear", 100_000),
        result("digits", "resnet18", 2000),
        result("digits int8", "resnet18", 4000),
        {"contestant": "onnxruntime", "model": "linear", "rounds": [alone]},
    ]
    shown = table({"compared": {"results": results}})
    assert "| **digits**, fp32 | 100,000 | 2,000 | 10.0 / 500.0 | 0.20 / 0.20 |" in shown
    assert "| **digits**, int8 |  | 4,000 |  / 250.0 |  / 0.20 |" in shown
    assert "| ONNX Runtime alone, the best of its batches | 3,000,000 images/s |  |" in shown
    assert "Triton" not in shown


def test_targets_that_are_missed_are_named_with_what_was_asked_for() -> None:
    met, missed = Verdict("a", 2.0, 1.0, at_most=False), Verdict("b", 2.0, 1.0, at_most=True)
    assert targets([met]) == "Of 1 targets 1 are met.\n"
    assert targets([met, missed]).splitlines()[1] == "- b: 2.00, at most 1 asked for"

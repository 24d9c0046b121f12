"""What is known of a version's accuracy, in lines for people."""

from __future__ import annotations

from collections.abc import Iterator

from serving.client_types import ModelQuality


def described(each: ModelQuality) -> Iterator[str]:
    """Lines that say all that is known of a version."""
    yield f"{each.model} version {each.version}"
    if each.accuracy:
        interval = f"95% interval {each.accuracy.low:.4f} to {each.accuracy.high:.4f}"
        share = f"{each.accuracy.value:.4f}  ({interval})"
        yield f"  accuracy    {share}, {each.correct_count} of {each.feedback_count} labels"
    else:
        yield "  accuracy    no labels yet"
    if each.holdout_accuracy is not None:
        yield f"  holdout     {each.holdout_accuracy:.4f}"
    if each.probe_accuracy is not None:
        passed = "passed" if each.probe_passed else "failed"
        yield f"  probe       {each.probe_accuracy:.4f}  ({passed})"
    if each.estimated_accuracy is not None:
        reliable = "" if each.estimate_reliable else "  (unreliable: the inputs drifted)"
        yield f"  estimated   {each.estimated_accuracy:.4f}{reliable}"
    yield from _drift(each)
    yield from _matrix(each)


def _drift(each: ModelQuality) -> Iterator[str]:
    if each.drift:
        indices = sorted(each.drift.population_stability_index.items())
        listed = ", ".join(f"{feature} {value:.3f}" for feature, value in indices) or "too few rows"
        window = f"{each.drift.rows} rows in {each.drift.window_seconds:g} s"
        yield f"  drift       {'YES' if each.drift.drifted else 'no'}: {listed}  ({window})"


def _matrix(each: ModelQuality) -> Iterator[str]:
    """A row for each truth, a column for each prediction that there was."""
    if not each.confusion:
        return
    truths = sorted({truth for truth, _ in each.confusion}, key=_naturally)
    columns = sorted({predicted for _, predicted in each.confusion}, key=_naturally)
    width = max(map(len, (*columns, *map(str, each.confusion.values())))) + 2
    first = max(map(len, (*truths, "truth"))) + 2
    yield ""
    yield f"  {'truth':<{first}}predicted"
    yield f"  {'':<{first}}" + "".join(f"{name:>{width}}" for name in columns)
    for truth in truths:
        counts = (each.confusion.get((truth, predicted), 0) for predicted in columns)
        yield f"  {truth:<{first}}" + "".join(f"{count or '.':>{width}}" for count in counts)


def _naturally(name: str) -> tuple[bool, int, str]:
    """Numbers by their value, then the rest, `other` among them."""
    number = name.isascii() and name.isdigit()
    return not number, int(name) if number else 0, name

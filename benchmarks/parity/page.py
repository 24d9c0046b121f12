"""The table of runtimes, as Markdown and as one HTML file that asks for nothing from elsewhere."""

from __future__ import annotations

import html as markup
from collections.abc import Iterator, Sequence

from benchmarks.machine import sentence
from benchmarks.parity.measure import BATCH, LOSS, TOLERANCE, Row
from benchmarks.parity.runtimes import EAGER
from training.dataset import Dataset

HEAD = (
    "runtime",
    "precision",
    "labels as eager PyTorch",
    "largest probability difference",
    "accuracy",
    "one image, p50",
    f"images/s, {BATCH} at a time",
    "verdict",
)
TITLE = "Parity of runtimes"


def markdown(rows: Sequence[Row], dataset: Dataset, machine: dict[str, object]) -> str:
    """For a terminal, and for reading in the repository."""
    count = len(dataset.valid.labels)
    lines = [f"# {TITLE}", "", verdict(rows, count), "", *about(dataset, machine)]
    for model, own in _by_model(rows):
        lines += ["", f"## {model}", "", _line(HEAD), "|---|---|" + "---:|" * 5 + "---|"]
        lines += [_line(_cells(row, count)) for row in own]
    return "\n".join([*lines, ""])


def html(rows: Sequence[Row], dataset: Dataset, machine: dict[str, object]) -> str:
    """The page; a bar shows how each p50 compares with the model's slowest."""
    count = len(dataset.valid.labels)
    style = "bad" if any(row.faults for row in rows) else "good"
    body = [
        f"<h1>{TITLE}</h1>",
        f'<p class="verdict {style}">{markup.escape(verdict(rows, count))}</p>',
        *(
            f"<p>{markup.escape(line.replace('`', ''))}</p>"
            for line in about(dataset, machine)
            if line
        ),
    ]
    for model, own in _by_model(rows):
        body += [f"<h2>{markup.escape(model)}</h2>", *_table(own, count)]
    return _PAGE.format(title=TITLE, body="\n".join(body))


def verdict(rows: Sequence[Row], images: int) -> str:
    """One sentence: whether all is as it should be, and how far apart the fp32 runtimes are."""
    run = [row for row in rows if row.measured]
    faulty = [row for row in run if row.faults]
    if faulty:
        named = "; ".join(
            f"{row.model}, {row.runtime}, {row.precision}: {', '.join(row.faults)}"
            for row in faulty
        )
        return f"{len(faulty)} of {len(run)} do not answer as they should: {named}."
    others = [row for row in run if row.runtime != EAGER]
    exact = [row.measured for row in others if row.precision == "fp32" and row.measured]
    furthest = max(each.max_probability_difference for each in exact)
    text = (
        f"All {len(exact)} pairs of model and runtime in fp32 give eager PyTorch's label for each"
        f" of {images:,} images, with probabilities at most {furthest:.1e} from its own"
    )
    reduced = len(others) - len(exact)
    told = (
        f"; all {reduced} in int8 and fp16 lose no more accuracy than they may" if reduced else ""
    )
    return f"{text}{told}."


def about(dataset: Dataset, machine: dict[str, object]) -> list[str]:
    """What was compared, how, and on what."""
    classes = " and ".join(dataset.labels) if len(dataset.labels) == 2 else "all classes"
    source = "" if dataset.name == "mnist" else "; without MNIST, this is no full check"
    return [
        f"`make parity` on {sentence(machine)}.",
        "",
        f"{len(dataset.valid.labels):,} validation images of {classes}, from"
        f" {dataset.name}{source}.",
        "",
        "Eager PyTorch is the network that training builds, with the parameters that model.pt"
        " holds; every file was hashed before it was opened. An fp32 runtime must give the same"
        f" labels, and probabilities within {TOLERANCE:g}; an int8 or fp16 one may lose"
        f" {100 * LOSS:g} points of accuracy, or one image.",
        "",
        "p50 is the median over single images, one after the other, all runtimes in turns of ten,"
        " with one thread for each model; servers run beside their client on this machine."
        f" Its load average was {machine['load_average']} before; well above 0, no time means much."
        " TorchServe's Java compiles itself faster over its first minute, which it is not given"
        " here; benchmarks/results/serving.md measures it warm.",
    ]


def _by_model(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    for model in dict.fromkeys(row.model for row in rows):
        yield model, [row for row in rows if row.model == model]


def _cells(row: Row, images: int) -> list[str]:
    if not row.measured:
        return [row.runtime, row.precision, "", "", "", "", "", f"not run: {row.why_not}"]
    measured = row.measured
    return [
        row.runtime,
        row.precision,
        f"{images - measured.label_disagreements:,} of {images:,}",
        f"{measured.max_probability_difference:.1e}"
        if measured.max_probability_difference
        else "0",
        f"{measured.accuracy:.4f}",
        f"{measured.p50_seconds * 1000:.2f} ms",
        f"{measured.images_per_second:,.0f}",
        "; ".join(row.faults) or "agrees",
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table(rows: Sequence[Row], images: int) -> Iterator[str]:
    slowest = max(row.measured.p50_seconds for row in rows if row.measured)
    yield f"<table><thead>{_row('th', [markup.escape(cell) for cell in HEAD])}</thead><tbody>"
    for row in rows:
        cells = [markup.escape(cell) for cell in _cells(row, images)]
        if not row.measured:
            told = f'<td colspan="6" class="absent">{cells[-1]}</td>'
            yield f"<tr><td>{cells[0]}</td><td>{cells[1]}</td>{told}</tr>"
            continue
        share = 100 * row.measured.p50_seconds / slowest
        cells[5] = f'{cells[5]}<span class="bar" style="width:{share:.1f}%"></span>'
        style = "bad" if row.faults else "good"
        cells[-1] = f'<span class="{style}">{cells[-1]}</span>'
        yield _row("td", cells)
    yield "</tbody></table>"


def _row(tag: str, cells: Sequence[str]) -> str:
    """Those between the first two and the last are numbers."""
    text, last = ("", ' class="number"'), len(cells) - 1
    marked = [f"<{tag}{text[1 < n < last]}>{cell}</{tag}>" for n, cell in enumerate(cells)]
    return f"<tr>{''.join(marked)}</tr>"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; --soft: #8882; --bar: #4a7ebb; --good: #18794e;
  --bad: #c62a2f; }}
@media (prefers-color-scheme: dark) {{ :root {{ --good: #4cc38a; --bad: #ff8b8b; }} }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; margin: 0 0 .5rem; }}
h2 {{ font-size: 1.1rem; margin: 2rem 0 .4rem; }}
p {{ margin: .5rem 0; max-width: 60rem; }}
.verdict {{ font-weight: 600; border-left: .3rem solid; padding-left: .8rem; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); }}
th {{ font-weight: 600; font-size: .85rem; vertical-align: bottom; }}
td {{ white-space: nowrap; }}
.number {{ text-align: right; }}
.absent, td:last-child {{ white-space: normal; }}
.absent {{ opacity: .65; }}
.bar {{ display: block; height: 4px; margin-left: auto; background: var(--bar);
  border-radius: 2px; }}
tbody tr:hover {{ background: var(--soft); }}
.good {{ color: var(--good); }}
.bad {{ color: var(--bad); }}
</style>
</head>
<body>
{body}
</body>
</html>
"""

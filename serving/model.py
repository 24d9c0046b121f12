"""Model: one version, verified, warmed up, proven on its holdout, and run: arrays to arrays.

Owns which of a version's variants is taken. Sessions are `session`'s, buffers `binding`'s.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from model_repository import ONNX_PLATFORM, Manifest, Variant
from serving import holdout
from serving.binding import GraphBound, HostBound, bindable, input_buffers, pinned
from serving.cpu import int8_instructions
from serving.device import CPU, TENSORRT, Runtime
from serving.errors import ModelLoadError
from serving.holdout import Standard
from serving.rows import filled, why_not_shared
from serving.session import Tensors, first_line, open_session

PROBE_ROWS = (1, 8)
PROBE_SECONDS = 0.2  # for all sizes together
PROBE_RUNS = 11  # per size and precision, at most
HOLDOUT_ROWS = 64  # per run, at most

Run = Callable[[Tensors], Tensors]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded version that may take traffic; `run` is thread-safe for the runtime's instances."""

    manifest: Manifest
    variant: Variant
    device: str  # "cpu" or "gpu"
    provider: str  # the ONNX Runtime execution provider that is active
    notes: tuple[str, ...]  # what was chosen, and why
    load_seconds: float
    batchable: bool  # requests may share a run
    run: Run  # outputs by name; raises whatever ONNX Runtime does
    standard: Standard | None = None  # what it must go on to reach, where there is such a thing
    # Arrays of the most rows of a run, a set for each instance: inputs that are written there are
    # read from there, without a copy. None where that saves nothing.
    buffers: tuple[Tensors, ...] = ()


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One variant that has proven itself."""

    variant: Variant
    provider: str
    batchable: bool
    run: Run
    notes: tuple[str, ...]
    standard: Standard | None
    buffers: tuple[Tensors, ...]


def load(directory: Path, manifest: Manifest, runtime: Runtime) -> Model:
    """The version in that directory, ready to run; ModelLoadError says why it is not.

    Its notes are logged here, once.
    """
    started = time.monotonic()
    wanted, notes = _wanted(manifest, runtime)
    if runtime.cuda_graphs and not bindable(manifest):
        runtime = dataclasses.replace(runtime, cuda_graphs=False)
        notes += ("without CUDA graphs: they need tensors that vary in rows only",)
    chosen = _prove(directory, manifest, wanted, runtime)
    if runtime.precision == "auto" and runtime.device == "cpu":
        chosen, more = _or_int8(directory, manifest, chosen, runtime)
        notes += more
    notes += chosen.notes
    _return_freed_memory()
    for note in notes:
        log.info("model %s version %d: %s", manifest.name, manifest.version, note)
    seconds = time.monotonic() - started
    return Model(
        manifest,
        chosen.variant,
        runtime.device,
        chosen.provider,
        notes,
        seconds,
        chosen.batchable,
        chosen.run,
        chosen.standard,
        chosen.buffers,
    )


def _wanted(manifest: Manifest, runtime: Runtime) -> tuple[Variant, tuple[str, ...]]:
    """The variant of the precision that was asked for, or fp32, saying why."""
    precision = runtime.precision
    if precision == "fp16" and runtime.device == "cpu":
        note: tuple[str, ...] = ("fp32 instead of fp16, which is for a GPU",)
    elif precision == "tf32" and runtime.device == "cpu":
        note = ("fp32 instead of tf32, which is for a GPU",)
    elif precision in ("int8", "fp16"):
        if variant := manifest.variant(ONNX_PLATFORM, precision):
            return variant, ()
        note = (f"fp32, as it has no {precision} variant",)
    else:
        note = ()
    variant = manifest.variant(ONNX_PLATFORM, "fp32")
    if variant is None:
        have = ", ".join(v.precision for v in manifest.variants if v.platform == ONNX_PLATFORM)
        asked = precision if precision in ("int8", "fp16") else "fp32"
        raise ModelLoadError(f"no {asked} ONNX variant; there is {have or 'none'}", "manifest")
    if runtime.provider == TENSORRT and precision in ("auto", "fp32"):
        note += ("TensorRT may use TensorFloat-32 for fp32; CUDA does not",)
    return variant, note


def _prove(directory: Path, manifest: Manifest, variant: Variant, runtime: Runtime) -> _Candidate:
    """Open, warm up, and check on the holdout; ModelLoadError where any of it fails."""
    session = open_session(directory, manifest, variant, runtime)
    path = directory / variant.file
    run: Run = _plain(session, manifest)
    buffers: tuple[Tensors, ...] = ()
    why_not = why_not_shared(manifest, run)
    try:
        if not why_not:
            run, buffers = _runner(session, manifest, runtime)
    except (OSError, MemoryError, RuntimeError) as error:
        message = f"{path}: no buffers for the GPU: {first_line(error)}"
        raise ModelLoadError(message, "session") from None
    notes: tuple[str, ...] = (f"not batched: {why_not}",) if why_not else ()
    notes += _warm_up(path, manifest, run, (1,) if why_not else runtime.warm_up_rows)
    proven, standard = _check(directory, manifest, variant, run, runtime, not why_not)
    provider = session.get_providers()[0]
    return _Candidate(variant, provider, not why_not, run, notes + proven, standard, buffers)


def _runner(
    session: onnxruntime.InferenceSession, manifest: Manifest, runtime: Runtime
) -> tuple[Run, tuple[Tensors, ...]]:
    """The fastest way to run that the device and the model's shapes allow, and its buffers."""
    if runtime.provider == CPU or not bindable(manifest):
        return _plain(session, manifest), ()
    allocate, rows = pinned(), max(runtime.warm_up_rows)
    buffers = input_buffers(manifest, rows, runtime.instances, allocate)
    if runtime.cuda_graphs:
        return GraphBound(session, manifest, runtime.buckets).run, buffers
    return HostBound(session, manifest, rows, runtime.instances, allocate).run, buffers


def _plain(session: onnxruntime.InferenceSession, manifest: Manifest) -> Run:
    names = [spec.name for spec in manifest.outputs]

    def run(inputs: Tensors) -> Tensors:
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run


def _warm_up(path: Path, manifest: Manifest, run: Run, sizes: Sequence[int]) -> tuple[str, ...]:
    """Run every batch size twice: the first run allocates, and captures graphs.

    Sizes that vary beside the rows have to be guessed: there, a failure proves nothing.
    """
    guessed = any(-1 in spec.shape[1:] for spec in manifest.inputs)
    for rows in sizes:
        try:
            for _ in range(2):
                run(filled(manifest.inputs, rows))
        except Exception as error:  # ONNX Runtime's errors have no common class
            message = f"the first run failed at {rows} rows: {first_line(error)}"
            if guessed:
                return (f"not warmed up: {message}",)
            raise ModelLoadError(f"{path}: {message}", "session") from None
    return ()


def _check(
    directory: Path,
    manifest: Manifest,
    variant: Variant,
    run: Run,
    runtime: Runtime,
    batchable: bool,
) -> tuple[tuple[str, ...], Standard | None]:
    """Hold the variant's answers on the holdout against what the manifest promises.

    What there is to say, and what to hold it against from then on.
    """
    labelled = holdout.read(directory, manifest)
    if labelled is None or any(spec.shape[:1] != (-1,) for spec in manifest.inputs):
        return (), None
    images = len(labelled.labels)
    least = holdout.floor(variant, images, runtime.holdout_tolerance)
    if least is None:
        return (), None
    rows = max(runtime.buckets, default=min(HOLDOUT_ROWS, runtime.max_batch_size))
    rows = rows if batchable else 1
    try:
        reached = holdout.accuracy(labelled, manifest, run, rows)
    except Exception as error:
        message = f"{directory / variant.file}: failed on its holdout: {first_line(error)}"
        raise ModelLoadError(message, "holdout") from None
    if reached is None:
        return ("not checked on its holdout: no output tells a class",), None
    if shortfall := Standard(labelled, least).shortfall(reached):
        raise ModelLoadError(f"{directory / variant.file}: {shortfall}", "holdout")
    standard = holdout.kept(labelled, variant, runtime.holdout_tolerance)
    notes: tuple[str, ...] = (
        f"{variant.precision} got {reached:.4f} of {images} holdout rows right",
    )
    if standard and len(standard.holdout.labels) < images:
        notes += (f"{len(standard.holdout.labels)} of them are kept for probes",)
    return notes, standard


def _or_int8(
    directory: Path, manifest: Manifest, fp32: _Candidate, runtime: Runtime
) -> tuple[_Candidate, tuple[str, ...]]:
    """The int8 variant where this CPU was made for it, it answers well here, and it is faster."""
    variant = manifest.variant(ONNX_PLATFORM, "int8")
    if variant is None:
        return fp32, ()
    instructions = int8_instructions()
    if not instructions:
        return fp32, ("int8 not taken: this CPU has neither VNNI nor AMX",)
    try:
        int8 = _prove(directory, manifest, variant, runtime)
    except ModelLoadError as error:
        return fp32, (f"int8 not taken: {error}",)
    sizes = [rows for rows in PROBE_ROWS if rows <= runtime.max_batch_size]
    sizes = sizes if fp32.batchable else [1]
    times = [_times(manifest, rows, (fp32.run, int8.run), len(sizes)) for rows in sizes]
    compared = ", ".join(
        f"{b * 1000:.2f} ms against fp32's {a * 1000:.2f} ms at {rows} rows"
        for rows, (a, b) in zip(sizes, times, strict=True)
    )
    if all(b < a for a, b in times):
        return int8, (f"int8 taken ({', '.join(instructions)}): {compared}",)
    return fp32, (f"int8 not taken, it is not faster here: {compared}",)


def _times(
    manifest: Manifest,
    rows: int,
    runs: tuple[Run, Callable[[Tensors], Tensors]],
    sizes: int,
) -> tuple[float, float]:
    """Median seconds of one run of each, in turns, so that a busy machine slows both alike."""
    inputs = filled(manifest.inputs, rows)
    taken: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + PROBE_SECONDS / sizes
    while len(taken[0]) < PROBE_RUNS and (not taken[0] or time.perf_counter() < end):
        for run, seconds in zip(runs, taken, strict=True):
            start = time.perf_counter()
            run(inputs)
            seconds.append(time.perf_counter() - start)
    return statistics.median(taken[0]), statistics.median(taken[1])


def _return_freed_memory() -> None:
    """Give back what loading freed, which glibc keeps: 80 MiB of ResNet18's 147 MiB."""
    with contextlib.suppress(OSError, AttributeError):  # another libc has no such function
        ctypes.CDLL("libc.so.6").malloc_trim(0)

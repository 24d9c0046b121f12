"""What answers for one published version in this process: PyTorch and ONNX Runtime, by precision.

Each file is opened only if it is what the manifest says. One thread for each, as for the servers.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model_repository import (
    ONNX_PLATFORM,
    TORCHSCRIPT_PLATFORM,
    Manifest,
    RepositoryError,
    Variant,
    read_manifest,
    versions,
)
from serving.device import CPU, CUDA, Runtime, why_no_cuda
from serving.session import open_session, verified
from training.export import Answers, Runner, eager_runner, torch_runner
from training.models import Classifier, build
from training.recipes import Recipe

EAGER = "eager PyTorch"


@dataclass(frozen=True, slots=True)
class Version:
    """A published version, and where it is."""

    directory: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """Of the model."""
        return self.manifest.name

    def onnx(self) -> list[Variant]:
        """The ONNX files, one for each precision."""
        return [each for each in self.manifest.variants if each.platform == ONNX_PLATFORM]


@dataclass(frozen=True, slots=True)
class Contestant:
    """A runtime at one precision; without `ask` it does not run here, and `why_not` says why."""

    runtime: str
    precision: str
    ask: Runner | None
    why_not: str = ""


def newest(repository: Path, name: str) -> Version:
    """The newest version of a model; RepositoryError where there is none."""
    numbers = versions(repository / name)
    if not numbers:
        raise RepositoryError(f"{repository / name}: no version; `make demo` publishes one")
    directory = repository / name / str(numbers[-1])
    return Version(directory, read_manifest(directory))


def no_gpu() -> str:
    """Why nothing runs on a GPU here; empty where one does."""
    fault = why_no_cuda()
    return f"no CUDA device: {fault.partition(';')[0]}" if fault else ""


def in_process(version: Version) -> Iterator[Contestant]:
    """Eager PyTorch first. Raises RepositoryError or ModelLoadError."""
    script = _torchscript(version)
    yield Contestant(EAGER, "fp32", eager_runner(_eager(version, script)))
    yield Contestant("TorchScript", "fp32", torch_runner(script))
    for variant in version.onnx():
        runner = _onnx_runner(version, variant, "cpu")
        yield Contestant("ONNX Runtime, CPU", variant.precision, runner)
    no_cuda = no_gpu()
    for variant in version.onnx():
        if variant.precision != "int8":  # which is made for CPUs
            ask = None if no_cuda else _onnx_runner(version, variant, "gpu")
            yield Contestant("ONNX Runtime, CUDA", variant.precision, ask, no_cuda)


def _torchscript(version: Version) -> torch.jit.ScriptModule:
    variant = version.manifest.variant(TORCHSCRIPT_PLATFORM, "fp32")
    if variant is None:
        raise RepositoryError(f"{version.directory}: no TorchScript")
    with verified(version.directory, variant.file, variant.sha256) as copy:
        script: torch.jit.ScriptModule = torch.jit.load(io.BytesIO(copy.read()))
    return script.eval()


def _eager(version: Version, script: torch.jit.ScriptModule) -> Classifier:
    """The network that training's code builds today, with the parameters of the published file."""
    facts = version.manifest.recipe
    if facts is None:
        raise RepositoryError(f"{version.directory}: no recipe says which network it is")
    recipe = Recipe(
        network=str(facts["network"]),
        loss=facts["loss"],  # type: ignore[arg-type]  # one of a Recipe's, which wrote it
        standardise=bool(facts["standardise"]),
    )
    outputs = 1 if recipe.one_logit else len(version.manifest.labels)
    classifier = Classifier(build(recipe.network, outputs, recipe.standardise), recipe.one_logit)
    classifier.load_state_dict(script.state_dict())
    return classifier


def _onnx_runner(version: Version, variant: Variant, device: str) -> Runner:
    provider = CPU if device == "cpu" else CUDA
    runtime = Runtime(device, variant.precision, threads=1, provider=provider)
    session = open_session(version.directory, version.manifest, variant, runtime)

    def run(images: NDArray[np.uint8]) -> Answers:
        probabilities, labels = session.run(["probabilities", "labels"], {"images": images})
        return probabilities, labels

    return run

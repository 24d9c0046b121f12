"""Loading one version: what is verified, what is refused, and that it computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from conftest import Digits

from model_repository import Manifest, TensorSpec, read_manifest
from serving.errors import ModelLoadError, StartupError
from serving.model import Model, Runtime, available_cpus, check_distributions, choose_device

CPU = Runtime("cpu", "auto", 1)
HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture
def version(repository: Path) -> Path:
    return repository / "classifier" / "1"


def test_a_loaded_classifier_recognises_real_digits(version: Path, digits: Digits) -> None:
    model = Model(version, read_manifest(version), CPU)
    outputs = model.run({"images": digits.images})
    assert (outputs["labels"] == digits.classes).mean() > 0.95
    assert outputs["probabilities"].shape == (len(digits.images), 2)
    np.testing.assert_allclose(outputs["probabilities"].sum(axis=1), 1, atol=1e-6)


def refused(version: Path, change: Callable[[Manifest], Manifest], runtime: Runtime = CPU) -> str:
    with pytest.raises(ModelLoadError) as caught:
        Model(version, change(read_manifest(version)), runtime)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_that_is_not_the_one_of_the_manifest_is_refused(version: Path) -> None:
    def forge(manifest: Manifest) -> Manifest:
        variant = dataclasses.replace(manifest.variants[0], sha256="0" * 64)
        return dataclasses.replace(manifest, variants=(variant,))

    assert f"the manifest says {'0' * 64}" in refused(version, forge)


def test_tensors_other_than_the_manifests_are_refused(version: Path) -> None:
    wrong = TensorSpec("images", "FP32", (-1, 28, 28))
    message = refused(version, lambda manifest: dataclasses.replace(manifest, inputs=(wrong,)))
    assert "inputs are {'images': ('UINT8', (-1, 28, 28))}" in message
    assert "the manifest says {'images': ('FP32', (-1, 28, 28))}" in message


def test_a_missing_precision_names_those_there_are(version: Path) -> None:
    def as_fp16(manifest: Manifest) -> Manifest:
        (variant,) = manifest.variants
        half = dataclasses.replace(variant, precision="fp16")
        return dataclasses.replace(manifest, variants=(half,))

    message = refused(version, as_fp16, Runtime("cpu", "int8", 1))
    assert message == "no int8 ONNX variant; there is fp16"


def test_int8_where_there_is_none_is_fp32(version: Path) -> None:
    model = Model(version, read_manifest(version), Runtime("cpu", "int8", 1))
    assert model.variant.precision == "fp32"


def test_a_missing_file_is_refused(version: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="No such file"):
        Model(tmp_path, read_manifest(version), CPU)


def test_a_model_may_share_runs_only_if_every_first_dimension_is_variable(repository: Path) -> None:
    names = ("classifier", "echo", "echo_fixed")
    models = [Model(path := repository / n / "1", read_manifest(path), CPU) for n in names]
    assert [model.batchable for model in models] == [True, True, False]


@pytest.mark.parametrize("installed", [{"onnxruntime"}, {"onnxruntime-gpu"}, set()])
def test_one_onnxruntime_is_fine(installed: set[str]) -> None:
    check_distributions(installed)


def test_both_onnxruntimes_together_are_refused() -> None:
    with pytest.raises(StartupError, match="both installed and break each other"):
        check_distributions({"numpy", "onnxruntime", "onnxruntime-gpu"})


def test_a_gpu_is_never_silently_replaced_by_the_cpu() -> None:
    if HAS_CUDA:
        assert choose_device("gpu") == choose_device("auto") == "gpu"
    else:
        assert choose_device("auto") == "cpu"
        with pytest.raises(StartupError, match="--device gpu: this onnxruntime has no CUDA"):
            choose_device("gpu")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "30000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
    ],
)
def test_threads_are_bounded_by_the_cgroups_quota(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_cpus(tmp_path) == expected


def test_without_a_quota_threads_follow_the_affinity(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert available_cpus(tmp_path) == available_cpus(tmp_path / "none")

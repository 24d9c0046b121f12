"""Loading one version: what is verified, what is refused, which variant runs, that it computes."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ECHO_TYPES, Digits, publish_model, publish_proven, save
from onnx import TensorProto, helper

from model_repository import ONNX_PLATFORM, Manifest, TensorSpec, Variant, read_manifest
from serving.cpu import int8_instructions
from serving.device import Runtime
from serving.errors import LoadFailure, ModelLoadError
from serving.model import Model, load
from serving.session import Tensors

CPU = Runtime("cpu", "auto", 1, max_batch_size=8)


@pytest.fixture
def version(repository: Path) -> Path:
    return repository / "classifier" / "1"


def loaded(directory: Path, runtime: Runtime = CPU) -> Model:
    return load(directory, read_manifest(directory), runtime)


def unchanged(manifest: Manifest) -> Manifest:
    return manifest


def refused(
    version: Path, change: Callable[[Manifest], Manifest] = unchanged, runtime: Runtime = CPU
) -> tuple[str, str]:
    """The reason and the one line with which it is refused."""
    with pytest.raises(ModelLoadError) as caught:
        load(version, change(read_manifest(version)), runtime)
    assert "\n" not in str(caught.value)
    assert caught.value.reason in LoadFailure
    return caught.value.reason, str(caught.value)


def with_variant(**changes: object) -> Callable[[Manifest], Manifest]:
    """The manifest with another first variant."""

    def change(manifest: Manifest) -> Manifest:
        variant = dataclasses.replace(manifest.variants[0], **changes)  # type: ignore[arg-type]
        return dataclasses.replace(manifest, variants=(variant,))

    return change


def test_a_loaded_classifier_recognises_real_digits(version: Path, digits: Digits) -> None:
    model = loaded(version)
    outputs = model.run({"images": digits.images})
    assert (outputs["labels"] == digits.classes).mean() > 0.95
    assert outputs["probabilities"].shape == (len(digits.images), 2)
    np.testing.assert_allclose(outputs["probabilities"].sum(axis=1), 1, atol=1e-6)
    assert (model.device, model.provider) == ("cpu", "CPUExecutionProvider")
    assert 0 < model.load_seconds < 10


def test_a_file_that_is_not_the_one_of_the_manifest_is_refused(version: Path) -> None:
    reason, message = refused(version, with_variant(sha256="0" * 64))
    assert reason == "checksum"
    assert f"the manifest says {'0' * 64}" in message


def test_a_file_outside_of_the_version_is_refused(version: Path) -> None:
    reason, message = refused(version, with_variant(file="../1/model.onnx"))
    assert (reason, message.endswith("is not a file of this version")) == ("manifest", True)


def test_a_symbolic_link_and_what_is_no_file_are_refused(tmp_path: Path, version: Path) -> None:
    manifest = read_manifest(version)
    (tmp_path / "model.onnx").symlink_to(version / "model.onnx")
    with pytest.raises(ModelLoadError, match="Too many levels of symbolic links"):
        load(tmp_path, manifest, CPU)
    (tmp_path / "model.onnx").unlink()
    os.mkfifo(tmp_path / "model.onnx")
    with pytest.raises(ModelLoadError, match="not a regular file"):
        load(tmp_path, manifest, CPU)


def test_a_missing_file_is_refused(version: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="No such file"):
        load(tmp_path, read_manifest(version), CPU)


@pytest.mark.parametrize("location", ["weights.bin", "../1/weights.bin"])
def test_a_model_that_keeps_weights_in_another_file_is_refused(
    tmp_path: Path, location: str
) -> None:
    def write(path: Path) -> None:
        np.ones(4, np.float32).tofile(path.with_name("weights.bin"))
        weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=location)
        tensor = helper.make_tensor_value_info
        graph = helper.make_graph(
            [helper.make_node("Add", ["x", "w"], ["y"])],
            "external",
            [tensor("x", TensorProto.FLOAT, ["N", 4])],
            [tensor("y", TensorProto.FLOAT, ["N", 4])],
            [weights],
        )
        opset = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=9)
        path.write_bytes(model.SerializeToString())

    x, y = (TensorSpec(name, "FP32", (-1, 4)) for name in "xy")
    directory = publish_model(tmp_path, "external", write, (x,), (y,))
    reason, message = refused(directory)
    assert reason == "session"
    assert "it keeps weights in other files" in message


def test_what_is_no_onnx_is_refused(tmp_path: Path) -> None:
    def write_noise(path: Path) -> None:
        path.write_bytes(b"noise")

    x = TensorSpec("x", "FP32", (-1, 4))
    directory = publish_model(tmp_path, "noise", write_noise, (x,), (x,))
    reason, message = refused(directory)
    assert (reason, "ONNX Runtime refuses it" in message) == ("session", True)


def test_tensors_other_than_the_manifests_are_refused(version: Path) -> None:
    wrong = TensorSpec("images", "FP32", (-1, 28, 28))
    reason, message = refused(version, lambda m: dataclasses.replace(m, inputs=(wrong,)))
    assert reason == "signature"
    assert "inputs are {'images': ('UINT8', (-1, 28, 28))}" in message
    assert "the manifest says {'images': ('FP32', (-1, 28, 28))}" in message


def test_a_model_whose_first_run_fails_is_refused(tmp_path: Path) -> None:
    """It splits its rows in three, which the warm-up's one row cannot be."""

    def write(path: Path) -> None:
        tensor = helper.make_tensor_value_info
        nodes = [
            helper.make_node("Split", ["x"], ["a", "b", "c"], axis=0, num_outputs=3),
            helper.make_node("Identity", ["a"], ["y"]),
        ]
        inputs = [tensor("x", TensorProto.FLOAT, ["N", 4])]
        outputs = [tensor("y", TensorProto.FLOAT, ["M", 4])]
        model = helper.make_model(
            helper.make_graph(nodes, "thirds", inputs, outputs),
            opset_imports=[helper.make_opsetid("", 18)],
            ir_version=9,
        )
        path.write_bytes(model.SerializeToString())

    x, y = (TensorSpec(name, "FP32", (-1, 4)) for name in "xy")
    directory = publish_model(tmp_path, "thirds", write, (x,), (y,))
    reason, message = refused(directory)
    assert (reason, "the first run failed at 1 rows" in message) == ("session", True)


def test_several_inputs_of_different_types_and_sizes_unknown_beforehand_load(
    tmp_path: Path, repository: Path
) -> None:
    assert len(loaded(repository / "echo" / "1").manifest.inputs) == len(ECHO_TYPES)

    def write(path: Path) -> None:
        tensor = helper.make_tensor_value_info
        nodes = [
            helper.make_node("Gather", ["table", "ids"], ["rows"], axis=0),
            helper.make_node("Reshape", ["rows", "halves"], ["y"]),
        ]
        table = helper.make_tensor("table", TensorProto.FLOAT, [5], np.arange(5.0))
        halves = helper.make_tensor("halves", TensorProto.INT64, [3], [0, 2, -1])
        inputs = [tensor("ids", TensorProto.INT64, ["N", "L"])]
        outputs = [tensor("y", TensorProto.FLOAT, ["N", 2, "H"])]
        save(helper.make_graph(nodes, "halves", inputs, outputs, [table, halves]), path)

    ids, y = TensorSpec("ids", "INT64", (-1, -1)), TensorSpec("y", "FP32", (-1, 2, -1))
    model = loaded(publish_model(tmp_path, "halves", write, (ids,), (y,)))
    assert model.notes[0].startswith("not batched: its rows could not be shown to be independent: ")
    assert model.notes[1].startswith("not warmed up: the first run failed at 1 rows: ")
    answer = model.run({"ids": np.array([[0, 1, 2, 3]])})
    assert answer["y"].tolist() == [[[0, 1], [2, 3]]]


def test_a_model_may_share_runs_only_if_every_first_dimension_is_variable(repository: Path) -> None:
    models = [loaded(repository / n / "1") for n in ("classifier", "echo", "echo_fixed")]
    assert [model.batchable for model in models] == [True, True, False]


def test_a_missing_precision_names_those_there_are(version: Path) -> None:
    runtime = dataclasses.replace(CPU, precision="int8")
    reason, message = refused(version, with_variant(precision="fp16"), runtime)
    assert (reason, message) == ("manifest", "no int8 ONNX variant; there is fp16")


@pytest.mark.parametrize(
    ("precision", "note"),
    [
        ("int8", "fp32, as it has no int8 variant"),
        ("fp16", "fp32 instead of fp16, which is for a GPU"),
        ("tf32", "fp32 instead of tf32, which is for a GPU"),
    ],
)
def test_what_a_cpu_or_a_model_does_not_have_is_fp32_and_says_so(
    version: Path, precision: str, note: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        model = loaded(version, dataclasses.replace(CPU, precision=precision))
    assert model.variant.precision == "fp32"
    assert model.notes == (note,)
    assert caplog.records[-1].getMessage() == f"model classifier version 1: {note}"


def fp32_and_int8(holdout_accuracy: float | None = None) -> tuple[Variant, Variant]:
    return (
        Variant("model.onnx", ONNX_PLATFORM, "fp32", ""),
        Variant("model.int8.onnx", ONNX_PLATFORM, "int8", "", None, holdout_accuracy),
    )


def test_int8_is_taken_when_it_was_asked_for(tmp_path: Path, digits: Digits) -> None:
    directory = publish_proven(tmp_path, digits, *fp32_and_int8())
    assert loaded(directory, dataclasses.replace(CPU, precision="int8")).variant.precision == "int8"
    assert loaded(directory, dataclasses.replace(CPU, precision="fp32")).variant.precision == "fp32"


def test_auto_says_why_int8_was_or_was_not_taken(tmp_path: Path, digits: Digits) -> None:
    model = loaded(publish_proven(tmp_path, digits, *fp32_and_int8()))
    if not int8_instructions():
        assert model.notes == ("int8 not taken: this CPU has neither VNNI nor AMX",)
    elif model.variant.precision == "int8":
        assert model.notes[0].startswith(f"int8 taken ({', '.join(int8_instructions())}): ")
    else:
        assert model.notes[0].startswith("int8 not taken, it is not faster here: ")
    assert not int8_instructions() or model.notes[0].endswith(" at 8 rows")


def test_int8_that_fails_its_holdout_on_this_cpu_is_not_taken(
    tmp_path: Path, digits: Digits
) -> None:
    arrays: Tensors = {"images": digits.images[:20], "labels": 1 - digits.classes[:20]}
    directory = publish_proven(tmp_path, digits, *fp32_and_int8(0.9), holdout=arrays)
    model = loaded(directory)
    assert model.variant.precision == "fp32"
    assert not int8_instructions() or "holdout rows, at least 0.8900 is required" in model.notes[0]
    asked, _ = refused(directory, runtime=dataclasses.replace(CPU, precision="int8"))
    assert asked == "holdout"


def test_another_provider_than_the_one_asked_for_is_refused(version: Path) -> None:
    """ONNX Runtime leaves out what it has not, with a warning; DirectML is Windows'."""
    runtime = dataclasses.replace(CPU, device="gpu", provider="DmlExecutionProvider")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reason, message = refused(version, runtime=runtime)
    assert reason == "session"
    assert "DmlExecutionProvider failed to start and " in message

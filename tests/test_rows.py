"""Which models may run the rows of several requests together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from conftest import (
    SLOW_SIZE,
    Digits,
    publish_classifier,
    publish_echo,
    publish_model,
    publish_slow,
    save,
)
from onnx import TensorProto, helper, numpy_helper

from model_repository import TensorSpec, read_manifest
from serving.config import ServerConfig
from serving.device import runtime_for
from serving.model import Model, load

X = TensorSpec("x", "FP32", (-1, 3))


def loaded(directory: Path) -> Model:
    runtime = runtime_for(ServerConfig(device="cpu", precision="fp32", intra_op_threads=1))
    return load(directory, read_manifest(directory), runtime)


def publish_nodes(repository: Path, *nodes: tuple[str, dict[str, Any]]) -> Path:
    """A model that passes `x` through the nodes, one after the other, to `y`."""

    def write(path: Path) -> None:
        names = ["x", *(f"t{i}" for i in range(len(nodes) - 1)), "y"]
        made = [
            helper.make_node(kind, [names[i]], [names[i + 1]], **attributes)
            for i, (kind, attributes) in enumerate(nodes)
        ]
        tensor = helper.make_tensor_value_info
        inputs = [tensor("x", TensorProto.FLOAT, ["N", 3])]
        outputs = [tensor("y", TensorProto.FLOAT, ["N", 3])]
        save(helper.make_graph(made, "nodes", inputs, outputs), path)

    return publish_model(repository, "nodes", write, (X,), (TensorSpec("y", "FP32", (-1, 3)),))


def test_independent_rows_share_a_run(tmp_path: Path, digits: Digits) -> None:
    assert loaded(publish_classifier(tmp_path, digits)).batchable
    assert loaded(publish_echo(tmp_path, "echo", (-1, 3))).batchable
    assert loaded(publish_nodes(tmp_path, ("Sigmoid", {}), ("Softmax", {"axis": 1}))).batchable


def test_rows_that_are_normalised_together_do_not(tmp_path: Path) -> None:
    model = loaded(publish_nodes(tmp_path, ("Softmax", {"axis": 0})))
    assert not model.batchable
    assert model.notes == ("not batched: the rows of output 'y' depend on each other",)


def test_a_model_that_takes_one_row_at_a_time_is_served_so(tmp_path: Path) -> None:
    model = loaded(publish_slow(tmp_path, shared=False))
    assert not model.batchable
    assert model.notes[0].startswith("not batched: two rows do not run: ")
    (answer,) = model.run({"x": np.zeros((1, SLOW_SIZE), np.float32)}).values()
    assert answer.shape == (1, SLOW_SIZE)


def test_a_fixed_first_dimension_is_no_batch(tmp_path: Path) -> None:
    model = loaded(publish_echo(tmp_path, "fixed", (2, 3)))
    assert not model.batchable


def test_outputs_without_a_row_for_each_row_are_no_batch(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        tensor = helper.make_tensor_value_info
        shape = numpy_helper.from_array(np.array([-1, 1]), "shape")
        node = helper.make_node("Reshape", ["x", "shape"], ["y"])
        inputs = [tensor("x", TensorProto.FLOAT, ["N", 3])]
        outputs = [tensor("y", TensorProto.FLOAT, ["M", 1])]
        save(helper.make_graph([node], "flat", inputs, outputs, [shape]), path)

    directory = publish_model(tmp_path, "flat", write, (X,), (TensorSpec("y", "FP32", (-1, 1)),))
    model = loaded(directory)
    assert model.notes == ("not batched: output 'y' has not a row for each row of the inputs",)


def test_whole_numbers_that_depend_on_other_rows_are_no_batch(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        tensor = helper.make_tensor_value_info
        node = helper.make_node("CumSum", ["x", "axis"], ["y"])
        axis = numpy_helper.from_array(np.array(0), "axis")
        inputs = [tensor("x", TensorProto.INT64, ["N", 3])]
        outputs = [tensor("y", TensorProto.INT64, ["N", 3])]
        save(helper.make_graph([node], "sums", inputs, outputs, [axis]), path)

    x, y = (TensorSpec(name, "INT64", (-1, 3)) for name in "xy")
    model = loaded(publish_model(tmp_path, "sums", write, (x,), (y,)))
    assert model.notes == ("not batched: the rows of output 'y' depend on each other",)

"""Importing: any ONNX model is published whole, proven and served; what cannot be is refused."""

from __future__ import annotations

import dataclasses
import json
import struct
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import CLASSIFIER_OUTPUTS, IMAGES, PATIENCE, Digits, Running, save, save_classifier
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from model_repository import HOLDOUT, Manifest, TensorSpec, faults, read_manifest, versions
from serving.pb import inference_pb2 as pb
from training.__main__ import main
from training.onnx_file import MAX_BYTES

Serve = Callable[..., AbstractContextManager[Running]]
Array = NDArray[Any]

value = helper.make_tensor_value_info
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


class TransformerBlock(nn.Module):
    """Masked self-attention and an MLP over embedded tokens, and scores for three classes."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.embedding = nn.Embedding(32, width)
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
        self.head = nn.Linear(width, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(N, L) tokens and which of them count → (N, 3) scores and (N, L, width) states."""
        x = self.embedding(tokens)
        rows, length, width = x.shape
        parts = self.queries_keys_values(self.before(x))
        q, k, v = parts.reshape(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        x = x + self.mix(attended.transpose(1, 2).reshape(rows, length, width))
        x = x + self.mlp(self.between(x))
        return self.head(x.mean(1)), x


@dataclasses.dataclass(frozen=True)
class Exported:
    """The block in PyTorch, and its ONNX file with any number of rows and tokens."""

    block: TransformerBlock
    path: Path


@pytest.fixture(scope="session")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A transformer block with random weights, exported as its users export theirs."""
    torch.manual_seed(0)
    block = TransformerBlock().eval()
    path = tmp_path_factory.mktemp("transformer") / "block.onnx"
    example = torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.bool)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        program = torch.onnx.export(
            block,
            example,
            dynamo=True,
            input_names=["tokens", "mask"],
            output_names=["scores", "states"],
            dynamic_shapes=(sizes, sizes),
            verbose=False,
        )
    assert program is not None
    program.save(path)
    return Exported(block, path)


def save_mixed(path: Path) -> None:
    """Inputs of four datatypes, one a scalar; `scores` are `points` scaled, per text's class."""
    nodes = [
        helper.make_node("Cast", ["factor"], ["scale"], to=FLOAT),
        helper.make_node("Mul", ["points", "scale"], ["scores"]),
        helper.make_node("Identity", ["text"], ["text_again"]),
        helper.make_node("Not", ["flag"], ["not_flag"]),
    ]
    inputs = [
        value("points", FLOAT, ["N", 3]),
        value("text", TensorProto.STRING, ["N"]),
        value("flag", TensorProto.BOOL, ["N", "M"]),
        value("factor", TensorProto.DOUBLE, []),
    ]
    outputs = [
        value("scores", FLOAT, ["N", 3]),
        value("text_again", TensorProto.STRING, ["N"]),
        value("not_flag", TensorProto.BOOL, ["N", "M"]),
    ]
    save(helper.make_graph(nodes, "mixed", inputs, outputs), path)


def save_scaled(path: Path, rows: str | int = "N", data: Path | None = None) -> None:
    """`y` is `x` times (1, 2, 3, 4); the factors go to a file `data` where it is given."""
    factors = numpy_helper.from_array(np.arange(1, 5, dtype=np.float32), "factors")
    nodes = [helper.make_node("Mul", ["x", "factors"], ["y"])]
    shapes = value("x", FLOAT, [rows, 4]), value("y", FLOAT, [rows, 4])
    save(helper.make_graph(nodes, "scaled", [shapes[0]], [shapes[1]], [factors]), path)
    if data is not None:
        model = onnx.load(path)
        onnx.save_model(
            model, path, save_as_external_data=True, location=data.name, size_threshold=0
        )


def imported(repository: Path, path: Path, *more: object, name: str = "model") -> Manifest:
    """Import and read back; the version must be whole."""
    arguments = ["import", path, "--name", name, "--model-repository", repository, *more]
    assert main([str(argument) for argument in arguments]) == 0
    directory = repository / name / str(versions(repository / name)[-1])
    assert faults(directory) == []
    return read_manifest(directory)


@pytest.fixture
def refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Import what cannot be: the one line of error. Nothing must be published or left behind."""

    def refuse(path: Path, *more: object) -> str:
        repository = tmp_path / "refusing"
        arguments = ["import", path, "--name", "model", "--model-repository", repository, *more]
        assert main([str(argument) for argument in arguments]) == 2
        assert list(repository.iterdir()) == []
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error.removeprefix("error: ").rstrip("\n")

    return refuse


def labels_file(folder: Path, text: str) -> Path:
    """A file of class names."""
    path = folder / "labels.txt"
    path.write_bytes(text.encode())
    return path


def holdout_file(folder: Path, **arrays: object) -> Path:
    """An npz of these arrays."""
    path = folder / "rows.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def answers(path: Path, **inputs: Array) -> list[Array]:
    """ONNX Runtime's own."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))


def test_a_transformer_keeps_its_signature_and_its_answers(
    transformer: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = labels_file(tmp_path, "yes\nno\nperhaps\n")
    manifest = imported(tmp_path, transformer.path, "--labels", labels)
    assert capsys.readouterr().out.splitlines() == [
        f"published {tmp_path / 'model' / '1'}",
        "  input  tokens: INT64 [-1, -1]",
        "  input  mask: BOOL [-1, -1]",
        "  output scores: FP32 [-1, 3]",
        "  output states: FP32 [-1, -1, 16]",
    ]
    assert manifest.inputs == (
        TensorSpec("tokens", "INT64", (-1, -1)),
        TensorSpec("mask", "BOOL", (-1, -1)),
    )
    assert manifest.outputs == (
        TensorSpec("scores", "FP32", (-1, 3)),
        TensorSpec("states", "FP32", (-1, -1, 16)),
    )
    assert manifest.labels == ("yes", "no", "perhaps")
    assert (manifest.accuracy, manifest.dataset, manifest.parity) == (None, None, None)
    for rows, length in ((1, 1), (3, 9), (7, 2)):
        tokens = torch.randint(0, 32, (rows, length))
        mask = torch.ones(rows, length, dtype=torch.bool)
        mask[0, 1:] = False
        with torch.inference_mode():
            expected = transformer.block(tokens, mask)
        got = answers(tmp_path / "model/1/model.onnx", tokens=tokens.numpy(), mask=mask.numpy())
        for mine, theirs in zip(got, expected, strict=True):
            np.testing.assert_allclose(mine, theirs.numpy(), atol=1e-5)


def test_inputs_of_several_datatypes_and_a_scalar_are_published_as_they_are(
    tmp_path: Path,
) -> None:
    save_mixed(tmp_path / "mixed.onnx")
    manifest = imported(tmp_path / "models", tmp_path / "mixed.onnx")
    assert manifest.inputs == (
        TensorSpec("points", "FP32", (-1, 3)),
        TensorSpec("text", "BYTES", (-1,)),
        TensorSpec("flag", "BOOL", (-1, -1)),
        TensorSpec("factor", "FP64", ()),
    )
    assert [spec.datatype for spec in manifest.outputs] == ["FP32", "BYTES", "BOOL"]
    assert manifest.recipe is not None
    assert (manifest.task, manifest.recipe["file"]) == ("inference", "mixed.onnx")


def test_imported_models_are_served(transformer: Exported, serve: Serve, tmp_path: Path) -> None:
    save_mixed(tmp_path / "mixed.onnx")
    imported(tmp_path / "models", transformer.path, name="block")
    imported(tmp_path / "models", tmp_path / "mixed.onnx", name="mixed")
    tokens = np.arange(12, dtype=np.int64).reshape(2, 6)
    mask = np.ones((2, 6), bool)
    points = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    text = b"".join(struct.pack("<I", len(word)) + word for word in (b"one", b"two"))
    with serve(tmp_path / "models") as running:
        block = pb.ModelInferRequest(model_name="block")
        block.inputs.add(name="tokens", datatype="INT64", shape=[2, 6])
        block.inputs.add(name="mask", datatype="BOOL", shape=[2, 6])
        block.raw_input_contents.extend([tokens.tobytes(), mask.tobytes()])
        mixed = pb.ModelInferRequest(model_name="mixed")
        mixed.inputs.add(name="points", datatype="FP32", shape=[2, 3])
        mixed.inputs.add(name="text", datatype="BYTES", shape=[2])
        mixed.inputs.add(name="flag", datatype="BOOL", shape=[2, 1])
        mixed.inputs.add(name="factor", datatype="FP64", shape=[])
        factor = np.float64(0.5).tobytes()
        mixed.raw_input_contents.extend([points.tobytes(), text, b"\x00\x01", factor])
        of_block, of_mixed = (
            running.stub.ModelInfer(each, timeout=PATIENCE) for each in (block, mixed)
        )
    scores = np.frombuffer(of_block.raw_output_contents[0], np.float32).reshape(2, 3)
    expected = answers(transformer.path, tokens=tokens, mask=mask)[0]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert list(of_mixed.raw_output_contents) == [(points / 2).tobytes(), text, b"\x01\x00"]


def test_weights_in_files_beside_the_model_are_brought_into_one_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    save_scaled(source / "scaled.onnx", data=source / "weights.bin")
    assert (source / "weights.bin").stat().st_size == 16
    imported(tmp_path / "models", source / "scaled.onnx")
    (source / "weights.bin").unlink()
    directory = tmp_path / "models" / "model" / "1"
    assert sorted(path.name for path in directory.iterdir()) == ["manifest.json", "model.onnx"]
    (y,) = answers(directory / "model.onnx", x=np.ones((2, 4), np.float32))
    assert y.tolist() == [[1, 2, 3, 4]] * 2


def test_a_shape_that_the_file_leaves_to_inference_is_written_down(tmp_path: Path) -> None:
    save_scaled(tmp_path / "scaled.onnx")
    model = onnx.load(tmp_path / "scaled.onnx")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "scaled.onnx")
    manifest = imported(tmp_path, tmp_path / "scaled.onnx")
    assert manifest.outputs == (TensorSpec("y", "FP32", (-1, 4)),)


def test_a_labelled_holdout_measures_the_class_indices_that_a_model_gives(
    digits: Digits, tmp_path: Path
) -> None:
    path = tmp_path / "classifier.onnx"
    save_classifier(path, digits)
    rows = holdout_file(tmp_path, images=digits.images, labels=digits.classes)
    manifest = imported(tmp_path / "models", path, "--holdout", rows)
    expected = float((answers(path, images=digits.images)[1] == digits.classes).mean())
    assert 0.9 < expected < 1
    assert manifest.accuracy == expected
    assert manifest.variants[0].holdout_accuracy == expected
    assert (manifest.inputs, manifest.outputs) == ((IMAGES,), CLASSIFIER_OUTPUTS)
    assert (tmp_path / "models/model/1" / HOLDOUT).read_bytes() == rows.read_bytes()


def test_a_labelled_holdout_measures_the_highest_score_where_no_output_is_called_labels(
    tmp_path: Path,
) -> None:
    save_scaled(tmp_path / "scaled.onnx")
    x = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 3]]
    rows = holdout_file(tmp_path, x=x, labels=np.array([0, 1, 2, 3, 0]))
    labels = labels_file(tmp_path, "a\r\nb\r\nc\r\nd")
    manifest = imported(tmp_path, tmp_path / "scaled.onnx", "--holdout", rows, "--labels", labels)
    assert (manifest.accuracy, manifest.labels) == (0.8, ("a", "b", "c", "d"))


def test_a_model_for_a_fixed_number_of_rows_takes_a_holdout_in_such_parts(tmp_path: Path) -> None:
    save_scaled(tmp_path / "scaled.onnx", rows=2)
    rows = holdout_file(tmp_path, x=np.eye(4, dtype=np.float32), labels=np.array([0, 1, 2, 0]))
    labels = labels_file(tmp_path, "a\nb\nc\nd\n")
    manifest = imported(tmp_path, tmp_path / "scaled.onnx", "--holdout", rows, "--labels", labels)
    assert manifest.accuracy == 0.75


def test_a_holdout_without_true_classes_has_to_run_and_measures_nothing(tmp_path: Path) -> None:
    save_mixed(tmp_path / "mixed.onnx")
    rows = holdout_file(
        tmp_path,
        points=np.zeros((5, 3), np.float32),
        text=np.array(["a", "b", "c", "d", "é"]),
        flag=np.zeros((5, 2), bool),
        factor=np.float64(2),
    )
    manifest = imported(tmp_path, tmp_path / "mixed.onnx", "--holdout", rows)
    assert (manifest.accuracy, manifest.variants[0].holdout_accuracy) == (None, None)
    assert HOLDOUT in manifest.files


Refuse = Callable[..., str]


def use_unknown_domain(model: onnx.ModelProto) -> None:
    """Make the node another's, of which only its maker's runtime knows."""
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.ClearField("graph"), "is not an ONNX model"),
        (lambda m: m.graph.ClearField("input"), "has no inputs"),
        (lambda m: m.graph.ClearField("output"), "has no outputs"),
        (lambda m: setattr(m.graph.input[0], "name", ""), "input 0 has no name"),
        (lambda m: setattr(m.graph.output[0], "name", ""), "output 0 has no name"),
        (lambda m: m.graph.output.append(m.graph.output[0]), "two outputs have the same name"),
        (lambda m: setattr(m.graph.node[0], "op_type", "Nope"), "No Op registered for Nope"),
        (use_unknown_domain, "ONNX Runtime refuses it"),
        (lambda m: setattr(m.opset_import[0], "version", 999), "ONNX Runtime refuses it"),
        (
            lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", INT64),
            "is not a valid ONNX model",
        ),
        (
            lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"),
            "input 'x' declares no shape, not even its rank",
        ),
        (
            lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 7),
            "is not a valid ONNX model",
        ),
    ],
)
def test_a_file_that_is_no_sound_model_is_refused(
    tmp_path: Path,
    change: Callable[[onnx.ModelProto], object],
    message: str,
    refusal: Refuse,
) -> None:
    path = tmp_path / "model.onnx"
    save_scaled(path)
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    error = refusal(path)
    assert error.startswith(f"{path}: ")
    assert message in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an ONNX model"),
        (b"hello, this is text", "is not a valid ONNX model"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_is_no_model_at_all_is_refused(
    tmp_path: Path, content: bytes | None, message: str, refusal: Refuse
) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    assert refusal(path).startswith(f"{path}: {message}")


def test_weights_missing_or_outside_the_models_folder_are_refused(
    tmp_path: Path, refusal: Refuse
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    save_scaled(source / "scaled.onnx", data=source / "weights.bin")
    (source / "weights.bin").rename(tmp_path / "weights.bin")
    assert "not regular file" in refusal(source / "scaled.onnx")
    model = onnx.load(source / "scaled.onnx", load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../weights.bin"
    (source / "scaled.onnx").write_bytes(model.SerializeToString())
    assert "points outside the directory" in refusal(source / "scaled.onnx")


def test_weights_beyond_what_one_protobuf_file_holds_are_refused_unread(
    tmp_path: Path, refusal: Refuse
) -> None:
    path = tmp_path / "large.onnx"
    save_scaled(path, data=tmp_path / "weights.bin")
    model = onnx.load(path, load_external_data=False)
    factors = model.graph.initializer[0]
    del factors.external_data[1:]  # keeps the location: the whole file is the tensor
    path.write_bytes(model.SerializeToString())
    with (tmp_path / "weights.bin").open("wb") as stream:
        stream.truncate(MAX_BYTES)  # holes: it takes no space
    assert "one file of at most 2,147,483,647, protobuf's limit" in refusal(path)
    assert "protobuf's limit" in refusal(grown(tmp_path / "one.onnx", MAX_BYTES + 1))


def grown(path: Path, size: int) -> Path:
    """A file of that size, without content."""
    with path.open("wb") as stream:
        stream.truncate(size)
    return path


def test_a_type_that_v2_does_not_have_is_refused_naming_the_tensor(
    tmp_path: Path, refusal: Refuse
) -> None:
    path = tmp_path / "model.onnx"
    nodes = [helper.make_node("SequenceConstruct", ["x", "x"], ["both"])]
    both = helper.make_tensor_sequence_value_info("both", FLOAT, ["N"])
    save(helper.make_graph(nodes, "sequence", [value("x", FLOAT, ["N"])], [both]), path)
    assert refusal(path).endswith(
        "output 'both' is seq(tensor(float)), for which V2 has no datatype"
    )
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=FLOAT)]
    inputs = [value("x", TensorProto.BFLOAT16, ["N"])]
    save(helper.make_graph(nodes, "bfloat16", inputs, [value("y", FLOAT, ["N"])]), path)
    assert refusal(path).endswith("input 'x' is tensor(bfloat16), for which V2 has no datatype")


def test_a_model_that_does_not_run_is_refused(tmp_path: Path, refusal: Refuse) -> None:
    path = tmp_path / "model.onnx"
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    shape = numpy_helper.from_array(np.array([5, -1]), "shape")
    graph = helper.make_graph(
        nodes, "reshape", [value("x", FLOAT, ["N"])], [value("y", FLOAT, [5, "M"])], [shape]
    )
    save(graph, path)
    assert "ONNX Runtime cannot run it: " in refusal(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\nc\n", "3 labels fit no output's last dimension (y 4)"),
        ("a\nb\na\nd\n", "line 3 repeats 'a'"),
        ("a\n\nc\nd\n", "line 2 is empty"),
        ("", "line 1 is empty"),
    ],
)
def test_labels_that_name_no_outputs_classes_are_refused(
    tmp_path: Path, text: str, message: str, refusal: Refuse
) -> None:
    save_scaled(tmp_path / "scaled.onnx")
    path = labels_file(tmp_path, text)
    assert refusal(tmp_path / "scaled.onnx", "--labels", path) == f"{path}: {message}"


def test_a_labels_file_that_is_missing_or_not_utf8_is_refused(
    tmp_path: Path, refusal: Refuse
) -> None:
    save_scaled(tmp_path / "scaled.onnx")
    path = tmp_path / "labels.txt"
    assert "No such file" in refusal(tmp_path / "scaled.onnx", "--labels", path)
    path.write_bytes(b"a\nb\nc\n\xff\n")
    assert "is not UTF-8" in refusal(tmp_path / "scaled.onnx", "--labels", path)


X = np.ones((3, 4), np.float32)
TRUE = np.array([0, 1, 2])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": TRUE}, "its arrays are [], the model's inputs ['x']"),
        ({"x": X, "z": X}, "its arrays are ['x', 'z'], the model's inputs ['x']"),
        ({"x": X.astype(np.float64)}, "array 'x' is float64, the input is FP32"),
        ({"x": X[:, :3]}, "array 'x' has shape [3, 3], the input has [-1, 4]"),
        ({"x": X[0]}, "array 'x' has shape [4], the input has [-1, 4]"),
        ({"x": X[:0]}, "its arrays must have the same number of rows, at least one; got 0"),
        ({"x": np.array([None])}, "cannot be read as an .npz of plain arrays: "),
        ({"x": X, "labels": TRUE[:2]}, "array 'labels' is int64 [2], expected int64 [3]"),
        ({"x": X, "labels": TRUE.astype(np.int32)}, "array 'labels' is int32 [3], expected int64"),
        ({"x": X, "labels": TRUE - 1}, "array 'labels' holds an index that is no class's"),
        ({"x": X, "labels": TRUE + 2}, "array 'labels' holds an index that is no class's"),
    ],
)
def test_a_holdout_that_does_not_fit_the_model_is_refused(
    tmp_path: Path, arrays: dict[str, object], message: str, refusal: Refuse
) -> None:
    save_scaled(tmp_path / "scaled.onnx")
    labels = labels_file(tmp_path, "a\nb\nc\nd\n")
    path = holdout_file(tmp_path, **arrays)
    error = refusal(tmp_path / "scaled.onnx", "--labels", labels, "--holdout", path)
    assert error.startswith(f"{path}: {message}")


def test_a_holdout_of_uneven_rows_or_of_none_that_a_fixed_model_takes_is_refused(
    tmp_path: Path, refusal: Refuse
) -> None:
    save_mixed(tmp_path / "mixed.onnx")
    mixed = {"text": np.array(["a"]), "flag": np.zeros((3, 1), bool), "factor": np.float64(1)}
    path = holdout_file(tmp_path, points=np.zeros((3, 3), np.float32), **mixed)
    uneven = refusal(tmp_path / "mixed.onnx", "--holdout", path)
    assert uneven.endswith("must have the same number of rows, at least one; got 1, 3")
    save_scaled(tmp_path / "scaled.onnx", rows=2)
    path = holdout_file(tmp_path, x=X)
    undivided = refusal(tmp_path / "scaled.onnx", "--holdout", path)
    assert undivided.endswith("its 3 rows cannot be fed to inputs of exactly 2 rows")


@pytest.mark.parametrize("content", [None, b"", b"hello", b"PK\x03\x04 cut"])
def test_a_holdout_that_is_no_npz_is_refused(
    tmp_path: Path, content: bytes | None, refusal: Refuse
) -> None:
    save_scaled(tmp_path / "scaled.onnx")
    path = tmp_path / "rows.npz"
    if content is not None:
        path.write_bytes(content)
    error = refusal(tmp_path / "scaled.onnx", "--holdout", path)
    assert error.startswith(f"{path}: cannot be read")


def test_a_single_array_is_no_holdout(tmp_path: Path, refusal: Refuse) -> None:
    save_scaled(tmp_path / "scaled.onnx")
    np.save(tmp_path / "x.npy", X)
    error = refusal(tmp_path / "scaled.onnx", "--holdout", tmp_path / "x.npy")
    assert error.endswith("cannot be read as an .npz of plain arrays: it is a single array")


def test_true_classes_without_an_output_to_hold_against_them_are_refused(
    tmp_path: Path, refusal: Refuse
) -> None:
    save_scaled(tmp_path / "scaled.onnx")
    path = holdout_file(tmp_path, x=X, labels=TRUE)
    error = refusal(tmp_path / "scaled.onnx", "--holdout", path)
    assert "has 'labels', but the model has no output to compare them with" in error


def test_a_holdout_on_which_the_model_fails_is_refused(
    transformer: Exported, tmp_path: Path, refusal: Refuse
) -> None:
    tokens = np.array([[1, 99]])  # of a vocabulary of 32
    path = holdout_file(tmp_path, tokens=tokens, mask=np.ones((1, 2), bool))
    error = refusal(transformer.path, "--holdout", path)
    assert error.startswith(f"{path}: ONNX Runtime cannot run it: ")


@pytest.mark.parametrize("name", ["../escape", "readiness", ""])
def test_a_name_that_is_no_models_is_refused_before_anything_is_read(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["import", "nothing.onnx", "--name", name, "--model-repository", str(tmp_path)])
    assert caught.value.code == 2
    assert f"error: {name!r}: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_second_import_is_the_next_version(tmp_path: Path) -> None:
    save_scaled(tmp_path / "scaled.onnx")
    for expected in (1, 2):
        assert imported(tmp_path / "models", tmp_path / "scaled.onnx").version == expected
    manifest = json.loads((tmp_path / "models/model/2/manifest.json").read_text())
    assert manifest["recipe"]["opsets"] == {"ai.onnx": 17}


def test_import_is_a_command_only_as_the_first_argument(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--name", "x", "import"])
    assert caught.value.code == 2
    assert "unrecognized arguments: import" in capsys.readouterr().err

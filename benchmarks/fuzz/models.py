"""Tiny models whose answers can be foreseen, and a server over them in this process."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model_repository import (
    HOLDOUT,
    ONNX_PLATFORM,
    Draft,
    TensorSpec,
    Variant,
    publish,
    staging,
)
from serving.config import ServerConfig
from serving.server import Server

Images = NDArray[np.uint8]

TYPES = {
    "BOOL": TensorProto.BOOL,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}
# Echoes, which give in_X back as out_X: name, shape, datatypes.
ECHO = ("echo", (-1, 3), tuple(TYPES))
FIXED = ("fixed", (2, 3), tuple(TYPES))
FREE = ("free", (-1, -1), ("FP32", "INT64", "BYTES"))
ECHOES = (ECHO, FIXED, FREE)
DIGITS = "digits"
LABELS = tuple("0123456789")


def publish_all(repository: Path) -> None:
    """The echoes, and a classifier of digits."""
    for name, shape, types in ECHOES:
        publish_echo(repository, name, shape, types)
    publish_digits(repository)


def publish_echo(repository: Path, name: str, shape: tuple[int, ...], types: Sequence[str]) -> Path:
    """The next version of an echo."""
    dims: list[str | int] = [f"N{i}" if size == -1 else size for i, size in enumerate(shape)]
    nodes = [helper.make_node("Identity", [f"in_{t}"], [f"out_{t}"]) for t in types]
    ins, outs = (
        [helper.make_tensor_value_info(f"{way}_{t}", TYPES[t], dims) for t in types]
        for way in ("in", "out")
    )
    inputs, outputs = (
        tuple(TensorSpec(f"{way}_{t}", t, shape) for t in types) for way in ("in", "out")
    )
    return _publish(
        repository, Draft(name, inputs, outputs, (), {}), helper.make_graph(nodes, name, ins, outs)
    )


def publish_digits(repository: Path, holdout: Mapping[str, Images] | None = None) -> Path:
    """The next version of a classifier that takes images of digits; what it says is arbitrary."""
    weights = np.random.default_rng(0).normal(0, 0.01, (784, 10)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"]),
        helper.make_node("ArgMax", ["scores"], ["labels"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        DIGITS,
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 28, 28])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 10]),
            helper.make_tensor_value_info("labels", TensorProto.INT64, ["N"]),
        ],
        [numpy_helper.from_array(weights, "weights")],
    )
    draft = Draft(
        DIGITS,
        (TensorSpec("images", "UINT8", (-1, 28, 28)),),
        (TensorSpec("probabilities", "FP32", (-1, 10)), TensorSpec("labels", "INT64", (-1,))),
        (),
        {"labels": LABELS},
    )
    return _publish(repository, draft, graph, holdout)


def _publish(
    repository: Path,
    draft: Draft,
    graph: onnx.GraphProto,
    holdout: Mapping[str, Images] | None = None,
) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    variant = Variant("model.onnx", ONNX_PLATFORM, "fp32", "")
    with staging(repository) as directory:
        onnx.save(model, directory / "model.onnx")
        if holdout:
            np.savez(directory / HOLDOUT, **holdout)  # type: ignore[arg-type]
        return publish(directory, dataclasses.replace(draft, variants=(variant,)))


@contextmanager
def server(transport: str = "grpcio", **options: object) -> Iterator[Server]:
    """One over all the models, on free ports of loopback; options are ServerConfig's."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        repository = Path(scratch, "models")
        publish_all(repository)
        with serving(repository, transport=transport, **options) as running:
            yield running


@contextmanager
def serving(repository: Path, **options: object) -> Iterator[Server]:
    """The same over a repository of one's own."""
    defaults = ServerConfig(
        model_repository=repository,
        grpc_port=0,
        metrics_port=0,
        http_port=0,
        allow_http=False,
        intra_op_threads=1,
        transport="grpcio",
    )
    running = Server(dataclasses.replace(defaults, **options))  # type: ignore[arg-type]
    running.start()
    try:
        running.wait_until_loaded()
        yield running
    finally:
        running.stop()

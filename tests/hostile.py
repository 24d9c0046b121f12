"""Files that somebody made to do harm, and who opened which: for the tests of both sides."""

from __future__ import annotations

import ctypes
import io
import os
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

value = helper.make_tensor_value_info
FLOAT, BOOL = TensorProto.FLOAT, TensorProto.BOOL

IN_OPEN = 0x20  # of inotify(7)


@contextmanager
def opened(directory: Path) -> Iterator[set[str]]:
    """Which of a directory's entries anybody opened meanwhile, native code as well; known when
    left."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert libc.inotify_add_watch(descriptor, os.fsencode(directory), IN_OPEN) > 0
    names: set[str] = set()
    try:
        yield names
        with suppress(BlockingIOError):
            while events := os.read(descriptor, 1 << 16):
                names.update(filter(None, _names(events)))  # no name is the directory itself
    finally:
        os.close(descriptor)


def _names(events: bytes) -> Iterator[str]:
    at = 0
    while at < len(events):
        *_, length = struct.unpack_from("iIII", events, at)
        yield os.fsdecode(events[at + 16 : at + 16 + length].rstrip(b"\0"))
        at += 16 + length


# Models: each with what a server says of it


def model(
    nodes: list[onnx.NodeProto],
    *constants: onnx.TensorProto,
    functions: tuple[onnx.FunctionProto, ...] = (),
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """x (N, 1) → y (N, 1), as `times` is; not checked."""
    inputs, outputs = [value("x", FLOAT, ["N", 1])], [value("y", FLOAT, ["N", 1])]
    graph = helper.make_graph(nodes, "hostile", inputs, outputs, list(constants))
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(name, 1) for name in domains)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    made.functions.extend(functions)
    return made


ADD = [helper.make_node("Add", ["x", "w"], ["y"])]


def constant(*dims: int, **content: Any) -> onnx.TensorProto:
    return TensorProto(name="w", data_type=FLOAT, dims=dims, **content)


def external(location: str) -> onnx.TensorProto:
    made = constant(1, data_location=TensorProto.EXTERNAL)
    made.external_data.add(key="location", value=location)
    return made


def field(number: int, content: bytes) -> bytes:
    """A field of protobuf's wire format, for what its libraries would not nest as deep."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    more = number >> 7
    return bytes([number & 0x7F | (0x80 if more else 0)]) + (_varint(more) if more else b"")


def deep(levels: int) -> bytes:
    """An If in an If in an If, around the identity."""
    identity = helper.make_node("Identity", ["x"], ["y"]).SerializeToString()
    output = field(12, value("y", FLOAT, ["N", 1]).SerializeToString())
    kind = _varint(20 << 3) + _varint(onnx.AttributeProto.GRAPH)
    plain = inner = field(1, identity) + field(2, b"inner") + output
    for _ in range(levels):
        both = ((b"then_branch", inner), (b"else_branch", plain))
        branches = [field(5, field(1, name) + field(6, graph) + kind) for name, graph in both]
        node = field(1, b"c") + field(2, b"y") + field(4, b"If") + b"".join(branches)
        inner = field(1, node) + field(2, b"inner") + output
    around = model([], helper.make_tensor("c", BOOL, [], [True]))
    return around.SerializeToString() + field(7, field(1, node))


def calling(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """A model that calls a function of those nodes, which is `ours.Again`."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ours", 1)]
    function = helper.make_function("ours", "Again", ["x"], ["y"], list(nodes), opsets)
    call = helper.make_node("Again", ["x"], ["y"], domain="ours")
    return model([call], functions=(function,), domains=("ours",))


def renamed(old: str, new: bytes, nodes: list[onnx.NodeProto]) -> bytes:
    """What no honest library writes: a name of the same length that is not UTF-8."""
    return model(nodes).SerializeToString().replace(old.encode(), new)


SOUND = model(ADD, constant(1, float_data=[1.0])).SerializeToString()
AGAIN = helper.make_node("Again", ["x"], ["y"], domain="ours")
TWO_WAY = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Identity", ["a"], ["b"])]

MODELS: dict[str, tuple[bytes | onnx.ModelProto, str]] = {
    "nothing": (b"", "No graph was found"),
    "half a model": (SOUND[:-7], "Protobuf parsing failed"),
    "noise": (bytes(range(256)), "Protobuf parsing failed"),
    "weights without values": (model(ADD, constant(4)), "refuses it"),
    "weights of terabytes": (model(ADD, constant(2**40)), "exceeds the 2147483648 byte limit"),
    "sizes that overflow": (model(ADD, constant(2**62, 2**62)), "overflow"),
    "a negative size": (model(ADD, constant(-5)), "Out of bounds"),
    "fewer weights than it says": (
        model(ADD, constant(2**28, raw_data=b"1234")),
        "does not match expected size",
    ),
    "Ifs in Ifs without end": (deep(60), "Protobuf parsing failed"),
    "an operator of another domain": (
        model([helper.make_node("Run", ["x"], ["y"], domain="evil")], domains=("evil",)),
        "evil:Run(-1) is not a registered function/op",
    ),
    "an operator that is a log line": (
        model([helper.make_node("\n\x1b[31m" + "A" * 100_000, ["x"], ["y"])]),
        "refuses it",
    ),
    "an operator that is no text": (
        renamed("ABCD", b"\xff\xfe\xff\xfe", [helper.make_node("ABCD", ["x"], ["y"])]),
        "refuses it",
    ),
    "a graph that goes round": (
        model([*TWO_WAY, helper.make_node("Identity", ["b"], ["y"])]),
        "not acyclic",
    ),
    "a function that calls itself": (calling(AGAIN), "refuses it"),
}


def weights_file(path: Path) -> str:
    np.array([42], np.float32).tofile(path)
    return path.name


def referring(where: str, weights: onnx.TensorProto) -> onnx.ModelProto:
    """A model that has its weights in one of the places where ONNX allows it."""
    held = [helper.make_node("Constant", [], ["w"], value=weights), *ADD]
    if where == "graph":
        return model(ADD, weights)
    if where == "node":
        return model(held)
    if where == "function":
        return calling(*held)
    branch = helper.make_graph(held, "held", [], [value("y", FLOAT, ["N", 1])])
    choice = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    return model([choice], helper.make_tensor("c", BOOL, [], [True]))


# Holdouts: each with what a server says of it


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def npy(header: str, data: bytes = b"") -> bytes:
    """An array's file with that header, whatever it says."""
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def archive(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        for name, content in members.items():
            made.writestr(name, content)
    return stream.getvalue()


def bomb() -> bytes:
    """An archive whose index says that its members unpack to gigabytes."""
    content = bytearray(ROWS)
    at = content.find(b"PK\x01\x02")
    struct.pack_into("<I", content, at + 24, 2**31)
    return bytes(content)


def touched(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


ROWS = npz(x=np.ones((4, 1), np.float32), labels=np.zeros(4, np.int64))
HUGE = "{'descr': '<i8', 'fortran_order': False, 'shape': (%d,)}"
HOLDOUTS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "unreadable"),
    "a pickle": (npz(x=np.ones(1), labels=np.array([{}], object)), "allow_pickle=False"),
    "a bare pickle": (b"\x80\x04.", "contains pickled (object) data"),
    "one array": (npy(HUGE % 1, bytes(8)), "it is a single array"),
    "members that are no arrays": (archive({"labels": b"text", "x": b"text"}), "is not an array"),
    "terabytes by its header": (archive({"labels.npy": npy(HUGE % 2**40)}), "unreadable"),
    "more than there is": (archive({"labels.npy": npy(HUGE % 2**60)}), "unreadable"),
    "a header that is a program": (
        archive({"labels.npy": npy("__import__('os').abort()")}),
        "unreadable",
    ),
    "a bomb": (bomb(), "it unpacks to 2147483"),
    "damaged": (touched(ROWS, 60), "unreadable"),
    "half of it": (ROWS[: len(ROWS) // 2], "unreadable"),
}

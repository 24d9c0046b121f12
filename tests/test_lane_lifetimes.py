"""The lane leaves nothing behind: servers that come and go, one that never began, a process that
ends or is killed while it serves, a version unloaded while it runs. And why it is not there."""

from __future__ import annotations

import gc
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    LANE_ANSWERS,
    LIFETIME,
    PATIENCE,
    ROOT,
    Digits,
    Running,
    publish_classifier,
    server_process,
    socket_directories,
    until,
)

from serving.config import ServerConfig
from serving.counter_directory import CounterDirectory
from serving.errors import StartupError
from serving.pb import inference_pb2 as pb
from serving.server import InferenceServer, Server

pytestmark = pytest.mark.lane

Serve = Callable[..., AbstractContextManager[Running]]

BEGINS = """
import sys
from pathlib import Path
from serving.config import ServerConfig
from serving.server import Server

config = ServerConfig(
    model_repository=Path(sys.argv[1]), grpc_port=0, metrics_port=0, http_port=0,
    transport="native", feedback_memory=1000,
)
server = Server(config)
mapped = next(line for line in open("/proc/self/maps") if "digits-counters-" in line)
print(Path(mapped.split()[-1]).parent, flush=True)
"""
ENDS_WHILE_IT_SERVES = (
    BEGINS
    + """
import grpc
server.start()
server.wait_until_loaded()
with grpc.insecure_channel(f"localhost:{server.grpc_port}") as channel:
    grpc.channel_ready_future(channel).result(60)
"""
)
IS_KILLED = (
    BEGINS
    + """
import os, signal
server.start()
os.kill(os.getpid(), signal.SIGKILL)
"""
)
LETS_GO_OF_WHAT_RUNS = """
import sys, threading
from pathlib import Path
import numpy as np
from serving.batch import Request
from serving.lane import native
from serving.metrics import Metrics
from serving.native_batcher import NativeBatcher
from serving.native_models import NativeSeries

entered, dropping, answered = threading.Event(), threading.Event(), threading.Event()

def run(inputs):
    entered.set()
    dropping.wait()
    for _ in range(1500):
        threading.Event().wait(0.001)
    return inputs

batcher = NativeBatcher(run, max_batch_size=1)
series = NativeSeries(Metrics(Path(sys.argv[1]), "test")).of_version(("model", "1"), False, ())
spec = [("x", "FP64", [-1])]
routed = native.ServedModel(
    "model", "1", spec, spec, [], batcher.native, native.ModelCounters(**series)
)
batcher.submit(Request({"x": np.zeros(1)}, lambda outcome: answered.set()))
entered.wait()
assert not batcher.close(0.0)
dropping.set()
del batcher
del routed  # the last owner of what runs: it waits, and Python's lock is the run's
assert answered.wait(60)
"""


def python(
    program: str, *arguments: object, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=environment.pop("cwd", ROOT),
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=LIFETIME,
    )


def config(repository: Path, **options: Any) -> ServerConfig:
    defaults: dict[str, Any] = {"grpc_port": 0, "metrics_port": 0, "allow_http": False}
    defaults |= {"transport": "native", "feedback_memory": 1000}
    return ServerConfig(model_repository=repository, **{**defaults, **options})


def open_files() -> list[str]:
    """What descriptors of this process refer to, but for the listing itself."""
    found = []
    for each in Path("/proc/self/fd").iterdir():
        try:
            found.append(os.readlink(each).split("[")[0])
        except FileNotFoundError:
            continue
    return sorted(each for each in found if not each.endswith("/fd"))


def lane_threads() -> set[int]:
    """Those of lanes, and of the versions that they serve, as the system numbers them."""
    found = set()
    for thread in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            if (thread / "comm").read_text().startswith(("lane", "classifier-1")):
                found.add(int(thread.name))
    return found


def ask(running: Running, digits: Digits) -> None:
    array = digits.images[:1]
    request = pb.ModelInferRequest(model_name="classifier", raw_input_contents=[array.tobytes()])
    request.inputs.add(name="images", datatype="UINT8", shape=array.shape)
    assert running.stub.ModelInfer(request, timeout=PATIENCE).model_name == "classifier"


def test_servers_that_come_and_go_leave_no_thread_no_descriptor_and_no_directory(
    tmp_path: Path, serve: Serve, digits: Digits
) -> None:
    publish_classifier(tmp_path, digits)

    others = lane_threads()  # of servers that other tests share

    def used() -> tuple[int, int, int]:
        gc.collect()
        lane = lane_threads() - others
        mapped = Path("/proc/self/maps").read_text().count("digits-counters-")
        sockets = sum(name.startswith(("anon_inode", "/tmp")) for name in open_files())
        return len(lane), sockets, mapped

    with serve(tmp_path, transport="native") as running:  # what stays is made by the first
        ask(running, digits)
    until(lambda: used()[0] == 0)
    before = used()
    for _ in range(5):
        with serve(tmp_path, transport="native") as running:
            ask(running, digits)
    until(lambda: used() <= before)


def test_stopping_again_does_nothing_and_neither_does_it_for_one_that_never_began(
    tmp_path: Path, digits: Digits
) -> None:
    publish_classifier(tmp_path, digits)
    others = lane_threads()
    server = Server(config(tmp_path))
    server.stop()
    server.stop()
    server = Server(config(tmp_path))
    server.start()
    server.wait_until_loaded()
    server.stop()
    server.stop()
    until(lambda: lane_threads() <= others)


@pytest.mark.parametrize("program", [BEGINS, ENDS_WHILE_IT_SERVES])
def test_a_process_ends_well_that_has_not_stopped_its_server(
    tmp_path: Path, digits: Digits, program: str
) -> None:
    publish_classifier(tmp_path, digits)
    ended = python(program, tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not Path(ended.stdout.strip()).exists()


def test_what_a_killed_process_leaves_the_next_removes(tmp_path: Path, digits: Digits) -> None:
    publish_classifier(tmp_path, digits)
    killed = python(IS_KILLED, tmp_path)
    assert killed.returncode == -9
    left = Path(killed.stdout.strip())
    assert any(left.glob("grpcio-*"))
    CounterDirectory().close()
    assert not left.exists()


def test_the_last_owner_of_a_version_that_runs_waits_for_it_without_pythons_lock(
    tmp_path: Path,
) -> None:
    ended = python(LETS_GO_OF_WHAT_RUNS, tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_server_that_cannot_be_made_leaves_no_directory(tmp_path: Path) -> None:
    before = set(Path("/dev/shm").glob("digits-counters-*"))
    with pytest.raises(StartupError, match="--feedback-memory"):
        Server(config(tmp_path, feedback_memory=10**15))
    assert set(Path("/dev/shm").glob("digits-counters-*")) <= before


def test_a_path_too_long_for_a_socket_is_said_in_one_line(tmp_path: Path) -> None:
    directory = CounterDirectory(tmp_path)
    deep = directory.path / ("deep" * 20)
    deep.mkdir()
    with pytest.raises(StartupError) as refused:
        InferenceServer(config(tmp_path), deep, [b"k" * 32])
    text = str(refused.value)
    assert text.startswith(f"--transport: {deep}/grpcio-")
    assert text.endswith(
        ": too long for a Unix socket, which has at most 107 bytes; TMPDIR can be shorter, and "
        "--transport=grpcio needs none"
    )
    assert InferenceServer(config(tmp_path, transport="grpcio"), deep, [b"k" * 32]).port == 0
    directory.close()


def test_nobody_else_may_enter_the_directory_of_the_socket_behind_it(
    tmp_path: Path, serve: Serve, digits: Digits
) -> None:
    publish_classifier(tmp_path, digits)
    with serve(tmp_path, transport="native"):
        directories = socket_directories(os.getpid())
        assert directories
        assert {stat.S_IMODE(each.stat().st_mode) for each in directories} == {0o700}


def test_the_log_says_that_it_was_taken_where_it_is(tmp_path: Path, digits: Digits) -> None:
    publish_classifier(tmp_path, digits)
    arguments = ("--model-repository", str(tmp_path), "--transport", "auto")
    with server_process(*arguments) as process:
        said = process.wait_for(r"INFO serving: ((the native lane|grpcio) answers .*)")[1]
    assert said == LANE_ANSWERS


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("", "is not built"),
        ("native.cpython-399-none.so", "was built for another Python: native.cpython-399"),
        (f"native{sysconfig.get_config_var('EXT_SUFFIX')}", "cannot be loaded: "),
    ],
)
def test_it_is_said_why_the_lane_is_not_there(tmp_path: Path, module: str, reason: str) -> None:
    """Not built, built for another interpreter, or without a library that it takes."""
    shutil.copytree(
        ROOT / "serving", tmp_path / "serving", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    for each in ROOT.glob("*.py"):
        shutil.copy(each, tmp_path)
    if module:
        (tmp_path / "serving" / "lane" / module).write_bytes(b"no library")
    program = "from serving.native_transport import choose; print(choose('{}').why)"
    ended = python(program.format("auto"), cwd=str(tmp_path))
    assert ended.stderr == ""
    assert ended.stdout.startswith(f"grpcio answers all calls: the native lane {reason}")
    ended = python(program.format("native"), cwd=str(tmp_path))
    assert f"StartupError: --transport: the native lane {reason}" in ended.stderr
    ended = python(program.format("grpcio"), cwd=str(tmp_path))
    assert ended.stdout == "grpcio answers all calls, as --transport says\n"

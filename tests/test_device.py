"""What models run with: the device, its libraries, the threads, the processor's instructions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest

from serving import device
from serving.config import ServerConfig
from serving.cpu import available_cpus, cpu_quota, int8_instructions, threads_for
from serving.device import CPU, CUDA, TENSORRT, Runtime, provider_options, runtime_for
from serving.errors import StartupError

HAS_CUDA = device.why_no_cuda() is None


@pytest.mark.parametrize("installed", [{"onnxruntime"}, {"onnxruntime-gpu"}, set()])
def test_one_onnxruntime_is_fine(installed: set[str]) -> None:
    device.check_distributions(installed)


def test_both_onnxruntimes_together_are_refused() -> None:
    with pytest.raises(StartupError, match="both installed and break each other"):
        device.check_distributions({"numpy", "onnxruntime", "onnxruntime-gpu"})


def test_a_gpu_is_never_silently_replaced_by_the_cpu() -> None:
    if HAS_CUDA:
        assert runtime_for(ServerConfig(device="gpu")).device == "gpu"
    else:
        with pytest.raises(StartupError, match=r"--device gpu: .*(no CUDA|CUDA's|CUDA does not)"):
            runtime_for(ServerConfig(device="gpu"))


def test_auto_says_what_it_took_and_why() -> None:
    runtime = runtime_for(ServerConfig())
    assert runtime.device == ("gpu" if HAS_CUDA else "cpu")
    taken = f"device {runtime.device}: {runtime.provider}, {runtime.threads} threads"
    assert runtime.why.startswith(taken)
    assert HAS_CUDA or "; no GPU, as " in runtime.why


def test_the_configuration_reaches_the_runtime() -> None:
    runtime = runtime_for(
        ServerConfig(
            device="cpu",
            precision="fp32",
            intra_op_threads=3,
            instance_count=2,
            max_batch_size=16,
            batch_buckets=(16, 4, 4),
            holdout_tolerance=0.5,
        )
    )
    expected = Runtime(
        "cpu",
        "fp32",
        3,
        instances=2,
        max_batch_size=16,
        buckets=(4, 16),
        holdout_tolerance=0.5,
    )
    assert runtime == expected
    assert runtime.warm_up_rows == (4, 16)
    assert Runtime("cpu", "fp32", 1, max_batch_size=1).warm_up_rows == (1,)
    assert Runtime("cpu", "fp32", 1, max_batch_size=32).warm_up_rows == (1, 32)


def test_the_probe_is_a_valid_model_and_starts_on_the_cpu() -> None:
    model = onnx.load_model_from_string(device.PROBE_MODEL)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Relu"]
    assert device.starts(CPU)
    assert device.starts(CUDA) == HAS_CUDA


def test_tensorfloat_32_is_off_unless_it_was_asked_for() -> None:
    gpu = Runtime("gpu", "fp32", 1, provider=CUDA, gpu_memory_limit=2**30)
    ((name, options),) = provider_options(gpu, "fp32", "x")
    assert name == CUDA
    assert options == {
        "device_id": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
        "enable_cuda_graph": "0",
        "gpu_mem_limit": str(2**30),
    }
    tf32 = dataclasses.replace(gpu, precision="tf32", cuda_graphs=True, gpu_memory_limit=0)
    ((_, options),) = provider_options(tf32, "fp32", "x")
    assert (options["use_tf32"], options["enable_cuda_graph"]) == ("1", "1")
    assert "gpu_mem_limit" not in options


def test_tensorrt_builds_fp16_engines_for_fp16_files_only_and_falls_back_on_cuda() -> None:
    runtime = Runtime("gpu", "fp16", 1, provider=TENSORRT)
    for precision, flag in (("fp16", "1"), ("fp32", "0")):
        (tensorrt, options), (cuda, _) = provider_options(runtime, precision, "abc")
        assert (tensorrt, cuda) == (TENSORRT, CUDA)
        assert options["trt_fp16_enable"] == flag
        assert options["trt_engine_cache_path"].endswith("/tensorrt/abc")


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2 = "0::/pod/container\n"
V1 = "5:memory:/pod\n4:cpu,cpuacct:/pod/container\n0::/\n"


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        (V2, {"cpu.max": "150000 100000\n"}, 1.5),  # the mount's root is the container's own
        (V2, {"pod/container/cpu.max": "50000 100000\n"}, 0.5),
        (
            V2,
            {"pod/cpu.max": "40000 100000\n", "pod/container/cpu.max": "max 100000\n"},
            0.4,
        ),
        (V2, {"pod/container/cpu.max": "max 100000\n"}, None),
        (V2, {"other/cpu.max": "10000 100000\n"}, None),
        (
            V1,
            {
                "cpu,cpuacct/pod/container/cpu.cfs_quota_us": "30000\n",
                "cpu,cpuacct/pod/container/cpu.cfs_period_us": "100000\n",
            },
            0.3,
        ),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("0::/../outside\n", {"cpu.max": "20000 100000\n"}, 0.2),
    ],
)
def test_the_tightest_quota_on_the_way_to_the_process_counts(
    tmp_path: Path, membership: str, files: dict[str, str], quota: float | None
) -> None:
    mount = write(tmp_path / "mount", files)
    (tmp_path / "self").write_text(membership)
    assert cpu_quota(mount, tmp_path / "self") == quota


def test_threads_are_shared_among_workers_and_never_none(tmp_path: Path) -> None:
    unlimited = tmp_path / "none"
    every = available_cpus(unlimited, unlimited)
    assert threads_for(1, unlimited, unlimited) == every
    assert threads_for(every, unlimited, unlimited) == 1
    assert threads_for(100 * every, unlimited, unlimited) == 1
    half = write(tmp_path / "half", {"cpu.max": "50000 100000\n"})
    assert available_cpus(half, unlimited) == 1


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx2 avx512f", ()),
        ("fpu avx512_vnni avx2 avx_vnni", ("avx512_vnni", "avx_vnni")),
        ("fpu amx_tile amx_int8", ("amx_int8",)),
    ],
)
def test_int8_instructions_are_read_from_the_processor(
    tmp_path: Path, flags: str, expected: tuple[str, ...]
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: avx512_vnni\n")
    assert int8_instructions(cpuinfo) == expected
    assert int8_instructions(tmp_path / "none") == ()

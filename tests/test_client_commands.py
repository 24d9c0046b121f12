"""The client's command line against a real server: what it prints on a terminal, into a pipe and
for programs, and its exit status."""

from __future__ import annotations

import json
import os
import pty
import re
import socket
import subprocess
import sys
import termios
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from conftest import PATIENCE, ROOT, Digits, Running, publish_classifier, running_server
from PIL import Image
from scripted import Refusal, Scripted, serving

from deploy.ports import reserved_port
from serving.client import Client, Drift, Interval, ModelQuality, main
from serving.client_bench import Plan, histogram, measure, quantile
from serving.client_channel import target
from serving.client_described import described
from serving.client_types import ModelStatistics
from serving.client_watch import Sample
from serving.client_watch import row as rates


def save_png(path: Path, digits: Digits, index: int) -> str:
    Image.fromarray(digits.images[index]).save(path)
    return str(path)


def test_the_command_prints_file_label_and_probability(
    running: Running, digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three, seven = int(np.argmin(digits.classes)), int(np.argmax(digits.classes))
    files = [save_png(tmp_path / f"{i}.png", digits, i) for i in (three, seven)]
    arguments = ["classify", *files, "--model", "classifier", "--address", running.address]
    assert main(arguments) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [each[:2] for each in rows] == [[files[0], "3"], [files[1], "7"]]
    assert all(0.5 < float(each[2]) <= 1 for each in rows)


def test_the_commands_take_labels_and_show_what_they_say(
    digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_classifier(tmp_path / "models", digits)
    three, seven = int(np.argmin(digits.classes)), int(np.argmax(digits.classes))
    files = [save_png(tmp_path / f"{i}.png", digits, i) for i in (three, seven)]
    with running_server(tmp_path / "models") as running:
        at = ["--address", running.address]

        def said(*arguments: str) -> list[str]:
            assert main([*arguments, *at]) == 0
            return capsys.readouterr().out.splitlines()

        assert said("quality") == ["classifier version 1", "  accuracy    no labels yet"]
        rows = said("classify", *files, "--model", "classifier", "--ids")
        ids = [each.split("\t")[3] for each in rows]
        assert said("feedback", ids[0], "3") == ["counted"]
        assert said("feedback", ids[0], "3") == ["repeated"]
        assert said("feedback", ids[1], "9") == ["counted"]
        assert said("quality", "--model", "classifier") == [
            "classifier version 1",
            "  accuracy    0.5000  (95% interval 0.0945 to 0.9055), 1 of 2 labels",
            "",
            "  truth  predicted",
            "           3  7",
            "  3        1  .",
            "  other    .  1",
        ]
        assert main(["feedback", "no id", "3", *at]) == 1
        reason = "malformed: not a prediction id"
        assert capsys.readouterr().err == f"error: {running.address}: {reason}\n"
        assert main(["quality", "--model", "nobody", *at]) == 1
        assert capsys.readouterr().err.startswith(f"error: {running.address}: NOT_FOUND: ")


def test_all_that_is_known_of_a_version_is_shown() -> None:
    confusion = {("10", "9"): 1, ("9", "9"): 1234, ("other", "10"): 20, ("9", "10"): 3}
    share = Interval(0.98, 0.9687, 0.9873)
    drift = Drift({"label": 0.3, "ink": 0.0123}, True, 600.0, 5000)
    quality = ModelQuality(
        *("m", "2", 1258, 1234, share, confusion, 0.99, 0.985, False, 0.9512, False, drift)
    )
    assert list(described(quality)) == [
        "m version 2",
        "  accuracy    0.9800  (95% interval 0.9687 to 0.9873), 1234 of 1258 labels",
        "  holdout     0.9900",
        "  probe       0.9850  (failed)",
        "  estimated   0.9512  (unreliable: the inputs drifted)",
        "  drift       YES: ink 0.012, label 0.300  (5000 rows in 600 s)",
        "",
        "  truth  predicted",
        "              9    10",
        "  9        1234     3",
        "  10          1     .",
        "  other       .    20",
    ]
    few = Drift({}, False, 600.0, 12)
    quality = ModelQuality("m", "2", 0, 0, None, {}, None, None, True, 0.5, True, few)
    assert list(described(quality)) == [
        "m version 2",
        "  accuracy    no labels yet",
        "  estimated   0.5000",
        "  drift       no: too few rows  (12 rows in 600 s)",
    ]


@pytest.mark.parametrize("content", [None, b"", b"\x89PNG\r\n\x1a\n garbage"])
def test_a_bad_file_is_one_line_and_status_2(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.png"
    if content is not None:
        file.write_bytes(content)
    assert main(["classify", str(file), "--model", "classifier"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(file) in error
    assert error.count("\n") == 1


def test_a_server_that_is_not_there_is_one_line_and_status_1(
    digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    file = save_png(tmp_path / "3.png", digits, 0)
    assert main(["classify", file, "--model", "classifier", "--address", address]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {address}: UNAVAILABLE: ")
    assert error.count("\n") == 1


@pytest.fixture
def folder(digits: Digits, tmp_path: Path) -> Path:
    """Forty digits in folders of a folder, with a file that is none and one of another kind."""
    path = tmp_path / "images"
    for index, image in enumerate(digits.images[:40]):
        below = path / str(index % 2)
        below.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(below / f"{index:02}.{'PNG' if index % 4 else 'jpeg'}")
    (path / "bad.png").write_text("no image")
    (path / "README.txt").write_text("not looked at")
    return path


def commanded(
    *arguments: str, stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """As a user has it, its output in pipes."""
    return subprocess.run(
        [sys.executable, "-m", "serving.client", *arguments],
        input=stdin,
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=PATIENCE,
        check=False,
    )


def test_a_file_that_is_no_image_fails_none_of_its_folder(
    running: Running, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ["--model", "classifier", "--address", running.address]
    assert main(["classify", str(folder), *at]) == 2
    told = capsys.readouterr()
    files = [line.split("\t")[0] for line in told.out.splitlines()]
    assert files == sorted(str(file) for file in folder.glob("?/*"))
    assert len(files) == 40
    assert told.err == f"error: {folder}/bad.png: not a PNG or JPEG image\n"


def test_a_folder_without_images_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", str(tmp_path), "--model", "classifier"]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: no PNG or JPEG files in it\n"


def test_programs_get_an_object_for_each_image(
    running: Running, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ["--model", "classifier", "--address", running.address, "--json", "--concurrency", "1"]
    assert main(["classify", str(folder / "0"), *at]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 20
    for each in rows:
        assert (each["model"], each["version"]) == ("classifier", "1")
        assert each["probability"] == each["probabilities"][each["label"]]
        assert each["prediction_id"]


def test_an_image_may_come_by_standard_input(running: Running, folder: Path) -> None:
    data = next((folder / "1").glob("*.PNG")).read_bytes()
    at = ("--model", "classifier", "--address", running.address)
    result = commanded("classify", "-", *at, stdin=data)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.startswith(b"-\t")


def test_what_is_no_image_on_standard_input_is_said_so() -> None:
    result = commanded("classify", "-", "--model", "classifier", stdin=b"no image")
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr == b"error: standard input: not a PNG or JPEG image\n"


class Terminal:
    """What a command writes to a terminal of a hundred columns."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        termios.tcsetwinsize(self.theirs, (40, 100))

    def read(self) -> str:
        """All of it, once nobody else has it open."""
        os.close(self.theirs)
        parts = []
        with suppress(OSError):  # EIO is how a terminal ends
            while part := os.read(self.ours, 65536):
                parts.append(part)
        os.close(self.ours)
        return b"".join(parts).decode()


def shown(*arguments: str, stdout: int | None = None, **environment: str) -> tuple[int, str, bytes]:
    """Exit status, what a terminal shows, and what went to standard output if that is a pipe."""
    terminal = Terminal()
    command = [sys.executable, "-m", "serving.client", *arguments]
    with (
        subprocess.Popen(
            command,
            stdout=terminal.theirs if stdout is None else stdout,
            stderr=terminal.theirs,
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm", **environment},
        ) as process,
        ThreadPoolExecutor(1) as pool,
    ):
        piped = process.stdout.read() if process.stdout else b""
        reading = pool.submit(terminal.read)
        return process.wait(PATIENCE), reading.result(), piped


def test_a_terminal_shows_a_table_without_colours_where_they_are_not_wanted(
    running: Running, folder: Path
) -> None:
    at = ("--model", "classifier", "--address", running.address)
    status, text, _ = shown("classify", str(folder / "0"), *at, NO_COLOR="1")
    assert status == 0
    assert "\t" not in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    head = next(line for line in plain.splitlines() if "probability" in line)
    assert head.split() == ["file", "label", "probability"]
    assert len(re.findall(r"\b[01]\.\d{4}\b", plain)) == 20
    assert "━" in text  # the bar
    assert not re.search(r"\x1b\[(3|9)[0-7]m", text)
    status, text, _ = shown("classify", str(folder / "0"), *at)
    assert re.search(r"\x1b\[(3|9)[0-7]m", text)


def test_the_bar_on_a_terminal_does_not_take_what_goes_into_a_file(
    running: Running, folder: Path
) -> None:
    at = ("--model", "classifier", "--address", running.address)
    status, text, piped = shown("classify", str(folder / "0"), *at, stdout=subprocess.PIPE)
    assert status == 0
    assert piped.count(b"\n") == 20
    assert "━" in text
    assert "\t" not in text


def test_the_models_are_listed(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--address", running.address]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "classifier\t1\tREADY\t-" in lines
    assert main(["models", "--address", running.address, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"model": "classifier", "version": "1", "state": "READY", "reason": ""} in rows


def test_what_is_known_of_a_version_is_there_for_programs(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quality", "--address", running.address, "--json"]) == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (row["model"], row["feedback_count"], row["confusion"]) == ("classifier", 0, [])


def test_watching_tells_what_was_asked_meanwhile(
    running: Running, digits: Digits, capsys: pytest.CaptureFixture[str]
) -> None:
    over = threading.Event()

    def ask() -> None:
        with Client(running.address) as client:
            while not over.is_set():
                client.classify(digits.images[:4], "classifier")

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        arguments = ["--interval", "0.3", "--count", "2"]
        status = main(["watch", *arguments, "--address", running.address, "--json"])
        over.set()
        asking.result()
    assert status == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    of_classifier = [each for each in rows if each["model"] == "classifier"]
    assert len(of_classifier) == 2
    for each in of_classifier:
        assert each["requests/s"] > 0
        assert each["rows/s"] == pytest.approx(4 * each["requests/s"], abs=0.5)
        assert each["mean ms"] > 0
    assert main(["watch", "--interval", "0.05", "--count", "1", "--address", running.address]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("model\tversion\trequests/s")
    assert "classifier\t1\t0.00\t0.00\t-\t-\t-\t0.00\t-\t0" in lines


def test_rates_are_those_of_the_last_interval_also_after_a_restart() -> None:
    key = ("m", "1")

    def sample(time: float, requests: int, rows: int) -> Sample:
        seconds = requests * 0.002
        sums = ModelStatistics(*key, requests, 0, rows, requests // 2, seconds, seconds / 4)
        return Sample(time, {key: sums}, {})

    row = rates(sample(10.0, 100, 400), sample(12.0, 140, 480), key)
    assert row == ("m", "1", 20.0, 40.0, 4.0, 2.0, 0.5, 0.0, None, None)
    row = rates(sample(10.0, 100, 400), sample(12.0, 10, 10), key)
    assert row[2:4] == (5.0, 5.0)


@pytest.mark.parametrize("loop", [["--concurrency", "3"], ["--rate", "100"]])
def test_a_measurement_counts_times_and_errors(
    running: Running, folder: Path, loop: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", "--model", "classifier", "--address", running.address, *loop]
    arguments += ["--seconds", "0.6", "--rows", "2", "--connections", "2"]
    assert main([*arguments, str(folder / "0"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["answered"] > 20
    assert told["errors"] == {}
    assert sum(each["count"] for each in told["histogram"]) == told["answered"]
    latency = told["latency"]
    ordered = [latency[name] for name in ("p50", "p90", "p99", "p99.9", "max")]
    assert ordered == sorted(ordered)
    assert (told["sent_late"] is None) == ("--rate" not in loop)
    assert main(arguments) == 0  # random images
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("classifier: ")
    assert "2 images in each" in lines[0]
    assert sum("█" in line for line in lines) > 1


def test_all_who_should_have_been_answered_meanwhile_see_a_server_stop() -> None:
    stopped = threading.Event()
    script = Scripted([], before=lambda: len(script.times) == 2 and stopped.wait(0.5))
    plan = Plan("m", "", 1, 1, 100.0, 1.0, 1, PATIENCE)
    with serving(script, threads=1) as address:
        measured = measure(target(address), plan)
    assert not measured.errors
    assert sum(each > 0.1 for each in measured.latencies) > 25  # of some 50 in that half second


def test_errors_are_counted_by_their_status(capsys: pytest.CaptureFixture[str]) -> None:
    full, wrong = (
        Refusal(code)
        for code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT)
    )
    script = Scripted([None, full, full, wrong])
    with serving(script) as address:
        arguments = ["bench", "--model", "m", "--address", address, "--seconds", "0.2"]
        assert main(arguments) == 0
    errors = [each for each in capsys.readouterr().out.splitlines() if "errors" in each]
    assert errors == ["  errors    2 RESOURCE_EXHAUSTED", "  errors    1 INVALID_ARGUMENT"]


def test_a_server_that_is_not_there_cannot_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    address = f"127.0.0.1:{reserved_port()}"
    for command in (["bench", "--model", "m"], ["watch"], ["models"], ["quality"]):
        assert main([*command, "--address", address]) == 1
        assert capsys.readouterr().err.startswith(f"error: {address}: UNAVAILABLE: ")


def test_quantiles_are_values_that_so_many_do_not_exceed() -> None:
    values = [float(value) for value in range(1, 1001)]
    assert [quantile(values, share) for share in (0.5, 0.99, 0.999, 1.0)] == [500, 990, 999, 1000]
    assert quantile([3.0], 0.999) == 3.0


def test_each_value_is_in_one_bar() -> None:
    rng = np.random.default_rng(0)
    values = sorted(rng.lognormal(-6, 1, 1000).tolist())
    counted = histogram(values)
    assert sum(count for _, count in counted) == 1000
    bounds = [bound for bound, _ in counted]
    assert bounds == sorted(bounds)
    assert bounds[-1] == values[-1]
    below = 0
    for bound, count in counted:
        assert count == sum(value <= bound for value in values) - below
        below += count
    assert histogram([0.5, 0.5]) == [(0.5, 2)]


@pytest.mark.parametrize("option", [["--rows", "0"], ["--rate", "-1"], ["--seconds", "x"]])
def test_an_option_that_makes_no_sense_is_named(
    option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", "--model", "m", *option])
    assert caught.value.code == 2
    assert f"argument {option[0]}: {option[1]!r} is no number" in capsys.readouterr().err


def test_a_token_comes_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    script = Scripted([])
    with serving(script) as address:
        assert main(["models", "--address", address, "--token-file", str(file)]) == 0
    assert {each["authorization"] for each in script.metadata} == {"Bearer s3cret"}
    assert main(["models", "--address", "example.org:1", "--token-file", str(file)]) == 2
    assert "s3cret" not in (error := capsys.readouterr().err)
    assert error.startswith("error: a token for example.org:1 would be sent in plain text")

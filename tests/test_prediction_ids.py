"""Prediction ids: they say what was predicted, to who knows the key, and cannot be made up."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import StartupError
from serving.prediction_ids import ForgedId, MalformedId, Signer, feedback_keys
from serving.predictions import Prediction

KEY, OTHER_KEY = b"a secret of this test", b"another secret of it"
SIGNER = Signer([KEY])
CLASSES = 10


def prediction(label: int = 7, confidence: float = 0.75) -> Prediction:
    return Prediction(label, confidence, calibrated=0.5, ink=0.1)


def one_id(signer: Signer = SIGNER, label: int = 7, confidence: float = 0.75) -> str:
    (text,) = signer.ids("resnet18", "3", CLASSES, [prediction(label, confidence)])
    return text


@given(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}", fullmatch=True),
    st.integers(1, 10**60),
    st.lists(st.tuples(st.integers(0, 99_999), st.floats(0, 1)), min_size=1, max_size=3),
)
def test_an_id_says_what_was_predicted(
    model: str, version: int, rows: list[tuple[int, float]]
) -> None:
    before = time.time_ns() // 1_000_000
    predictions = [prediction(*row) for row in rows]
    ids = SIGNER.ids(model, str(version), 100_000, predictions)
    read = [SIGNER.read(text) for text in ids]
    assert [(each.model, each.version, each.label) for each in read] == [
        (model, version, label) for label, _ in rows
    ]
    assert [each.confidence for each in read] == pytest.approx([c for _, c in rows], abs=1e-5)
    assert all(before <= round(each.time * 1e3) <= time.time_ns() // 1e6 for each in read)
    assert len({each.digest for each in read}) == len(rows)


@pytest.mark.parametrize(
    ("given_confidence", "told"),
    [(math.nan, math.nan), (0.0, 0.0), (1.0, 1.0), (1.004, 1.0), (-0.1, 0.0), (math.inf, 1.0)],
)
def test_a_confidence_that_is_none_is_told_as_unknown(given_confidence: float, told: float) -> None:
    read = SIGNER.read(one_id(confidence=given_confidence))
    assert read.confidence == pytest.approx(told, nan_ok=True)


def test_equal_predictions_have_ids_of_their_own_in_all_processes() -> None:
    row = [prediction(1, 0.5)] * 10_000
    replicas = [Signer([KEY]), Signer([KEY])]
    ids = [text for signer in replicas for text in signer.ids("m", "1", CLASSES, row)]
    assert len({SIGNER.read(text).digest for text in ids}) == 20_000


def test_a_label_that_is_no_class_has_an_empty_id_in_its_place() -> None:
    rows = [prediction(label, 0.5) for label in (3, 10, -1, 2**62, 4)]
    ids = SIGNER.ids("m", "1", CLASSES, rows)
    assert [SIGNER.read(text).label if text else None for text in ids] == [3, None, None, None, 4]


@given(st.data())
def test_an_id_in_which_anything_was_changed_is_refused(data: st.DataObject) -> None:
    text = one_id()
    at = data.draw(st.integers(0, len(text) - 1))
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    changed = text[:at] + data.draw(st.sampled_from(alphabet)) + text[at + 1 :]
    try:
        read = SIGNER.read(changed)
    except (ForgedId, MalformedId):
        assert changed != text
    else:  # bits beyond the last byte: the same id, which counts once
        assert read == SIGNER.read(text)
        assert changed[:-1] == text[:-1]


@pytest.mark.parametrize(
    "text",
    [
        *("", "7", "A" * 54, "A" * 57, "A" * 1025, "=" * 64, "ä" * 64),
        pytest.param(one_id() + "\n", id="a line"),
        pytest.param(one_id() + "==", id="padded"),
    ],
)
def test_what_is_no_id_is_malformed(text: str) -> None:
    with pytest.raises(MalformedId):
        SIGNER.read(text)


@given(st.text())
def test_no_text_is_taken_for_an_id(text: str) -> None:
    with pytest.raises(MalformedId):
        SIGNER.read(text)


def test_an_id_of_a_later_format_says_so() -> None:
    with pytest.raises(MalformedId, match="of format 2, which is unknown here"):
        SIGNER.read("Ag" + one_id()[2:])


def test_a_key_is_changed_without_losing_what_the_old_one_signed() -> None:
    old, both, new = Signer([KEY]), Signer([OTHER_KEY, KEY]), Signer([OTHER_KEY])
    before, meanwhile = one_id(old), one_id(both)
    assert both.read(before).label == both.read(meanwhile).label == new.read(meanwhile).label == 7
    with pytest.raises(ForgedId):
        new.read(before)
    with pytest.raises(ForgedId):
        old.read(meanwhile)


def test_without_a_file_every_start_draws_its_own_key() -> None:
    (one,), (other,) = feedback_keys(None), feedback_keys(None)
    assert (len(one), len(other)) == (32, 32)
    assert one != other


def test_a_file_has_one_secret_a_line(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(b"  first secret of two\r\n\nsecond secret of two")
    assert feedback_keys(path) == (b"first secret of two", b"second secret of two")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "No such file or directory"),
        (b" \n", "holds no secret"),
        (
            b"long enough for a key\n fifteen bytes..  \n",
            "line 2 has 15 bytes, a secret at least 16",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, content: bytes | None, fault: str
) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StartupError) as caught:
        feedback_keys(path)
    assert str(caught.value) == f"--feedback-key-file: {path}: {fault}"

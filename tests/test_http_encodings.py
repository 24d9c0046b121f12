"""Bodies as Content-Encoding has them, and which encoding a client likes best."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from serving.http.encodings import ENCODINGS, deflated, inflated, wanted


@given(body=st.binary(), encoding=st.sampled_from(sorted(ENCODINGS)))
def test_what_was_deflated_is_inflated(body: bytes, encoding: str) -> None:
    assert inflated(deflated(body, encoding), encoding, len(body)) == body


@pytest.mark.parametrize("encoding", ["", "identity"])
def test_a_body_may_be_encoded_by_nothing(encoding: str) -> None:
    assert inflated(b"plain", encoding, 5) == b"plain"


def test_a_byte_too_many_is_refused() -> None:
    with pytest.raises(HTTPException) as caught:
        inflated(zlib.compress(b"123456"), "deflate", 5)
    assert (caught.value.status_code, caught.value.detail) == (
        413,
        "the body is larger than 5 bytes, once inflated",
    )


@pytest.mark.parametrize(
    ("accepted", "best"),
    [
        ("", ""),
        ("br", ""),
        ("gzip", "gzip"),
        ("DEFLATE", "deflate"),
        ("deflate, gzip", "gzip"),
        ("gzip;q=0.1, deflate;q=0.2", "deflate"),
        ("gzip;q=0", ""),
        ("gzip;q=0, deflate", "deflate"),
        ("gzip;q=much", ""),
        ("gzip;q=nan", ""),
    ],
)
def test_the_encoding_that_a_client_likes_best_is_taken(accepted: str, best: str) -> None:
    assert wanted(accepted) == best

"""Every ServingError has a status; anything else is INTERNAL and says nothing."""

from __future__ import annotations

import grpc
import pytest

from serving.errors import InvalidInput, ServingError
from serving.servicer import STATUS, status_of

CODE = grpc.StatusCode


def subclasses(kind: type[ServingError]) -> list[type[ServingError]]:
    return [each for sub in kind.__subclasses__() for each in (sub, *subclasses(sub))]


def test_every_serving_error_has_its_status() -> None:
    codes = {kind.__name__: status_of(kind("why"))[0] for kind in subclasses(ServingError)}
    assert codes == {
        "ModelNotFound": CODE.NOT_FOUND,
        "ModelNotReady": CODE.UNAVAILABLE,
        "InvalidInput": CODE.INVALID_ARGUMENT,
        "QueueFull": CODE.RESOURCE_EXHAUSTED,
        "DeadlineExceeded": CODE.DEADLINE_EXCEEDED,
        "RequestCancelled": CODE.CANCELLED,
        "ModelFailed": CODE.INTERNAL,
    }
    assert len(STATUS) == len(codes)


def test_an_error_without_an_entry_takes_its_parents() -> None:
    class TooManyColours(InvalidInput):
        pass

    assert status_of(TooManyColours("red")) == (CODE.INVALID_ARGUMENT, "red")


def test_an_unknown_error_is_logged_with_its_traceback_and_kept_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert status_of(KeyError("password")) == (CODE.INTERNAL, "internal error")
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [KeyError]


def test_a_message_is_cut_to_what_a_header_carries() -> None:
    assert len(status_of(InvalidInput("x" * 100_000))[1]) == 1000

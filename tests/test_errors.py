"""Every ServingError has a status; anything else is INTERNAL and says nothing."""

from __future__ import annotations

import logging

import grpc
import pytest

from serving.errors import (
    InvalidInput,
    ModelFailed,
    NoRoom,
    Overloaded,
    QueueFull,
    RateLimited,
    Rejection,
    ServingError,
)
from serving.status import STATUS, reason_of, status_of


def subclasses(kind: type[ServingError]) -> list[type[ServingError]]:
    own = [each for each in kind.__subclasses__() if each.__module__ == "serving.errors"]
    return [each for sub in own for each in (sub, *subclasses(sub))]


def example(kind: type[ServingError]) -> ServingError:
    return kind("why", 0.5) if issubclass(kind, NoRoom) else kind("why")


def test_every_serving_error_has_its_status() -> None:
    kinds = subclasses(ServingError)
    statuses = {kind.__name__: status_of(example(kind), request_id="1") for kind in kinds}
    assert statuses == {
        "ModelNotFound": ("NOT_FOUND", "why"),
        "ModelNotReady": ("UNAVAILABLE", "why"),
        "BatcherClosed": ("UNAVAILABLE", "why"),
        "InvalidInput": ("INVALID_ARGUMENT", "why"),
        "NoRoom": ("RESOURCE_EXHAUSTED", "why"),
        "QueueFull": ("RESOURCE_EXHAUSTED", "why"),
        "Overloaded": ("RESOURCE_EXHAUSTED", "why"),
        "Draining": ("UNAVAILABLE", "why"),
        "DeadlineExceeded": ("DEADLINE_EXCEEDED", "why"),
        "RequestCancelled": ("CANCELLED", "why"),
        "ModelFailed": ("INTERNAL", "why"),
        "RateLimited": ("RESOURCE_EXHAUSTED", "why"),
        "Unauthenticated": ("UNAUTHENTICATED", "why"),
        "NotAllowed": ("PERMISSION_DENIED", "why"),
        "LoadFailed": ("FAILED_PRECONDITION", "why"),
        "NotSupported": ("UNIMPLEMENTED", "why"),
    }
    # These have that of the class above them.
    assert set(STATUS) == set(subclasses(ServingError)) - {QueueFull, Overloaded, RateLimited}


def test_every_serving_error_is_counted_as_one_of_few_reasons() -> None:
    reasons = {kind.__name__: reason_of(example(kind)) for kind in subclasses(ServingError)}
    assert reasons == {
        "ModelNotFound": "model_not_found",
        "ModelNotReady": "model_not_ready",
        "BatcherClosed": "model_not_ready",
        "InvalidInput": "invalid_input",
        "NotSupported": "invalid_input",
        "NoRoom": "overloaded",
        "QueueFull": "queue_full",
        "Overloaded": "overloaded",
        "Draining": "draining",
        "DeadlineExceeded": "deadline",
        "RequestCancelled": "cancelled",
        "ModelFailed": "failed",
        "RateLimited": "rate_limited",
        "Unauthenticated": "unauthenticated",
        "NotAllowed": "not_allowed",
        "LoadFailed": "failed",
    }
    assert set(reasons.values()) == set(Rejection)
    assert reason_of(KeyError("password")) == "failed"


def test_every_status_is_one_of_grpcs() -> None:
    assert set(STATUS.values()) <= set(grpc.StatusCode.__members__)


def test_an_error_without_an_entry_takes_its_parents() -> None:
    class TooManyColours(InvalidInput):
        pass

    assert status_of(TooManyColours("red")) == ("INVALID_ARGUMENT", "red")


def test_an_unknown_error_is_logged_with_its_traceback_and_kept_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    status, details = status_of(KeyError("password"), model="m", version="")
    (record,) = caplog.records
    assert record.exc_info
    assert record.exc_info[0] is KeyError
    facts = vars(record)
    assert (status, facts["model"], "version" in facts) == ("INTERNAL", "m", False)
    assert details == f"internal error (request {facts['request_id']})"


def test_a_failed_request_is_logged_by_the_id_that_its_caller_gave(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert status_of(ModelFailed("why"), request_id="mine") == ("INTERNAL", "why")
    assert [vars(record)["request_id"] for record in caplog.records] == ["mine"]


def test_what_callers_do_wrong_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    status_of(InvalidInput("x"), request_id="mine")
    assert caplog.records == []


def test_a_message_is_cut_to_what_a_header_carries() -> None:
    assert len(status_of(InvalidInput("x" * 100_000))[1]) == 1000


def test_a_message_beyond_ascii_is_cut_to_the_same_and_at_a_character() -> None:
    """A header has three bytes for each of its bytes."""
    assert status_of(InvalidInput("③" * 100_000))[1] == "③" * 333
    assert status_of(InvalidInput("\ud83d" + "x" * 3))[1] == "?xxx"

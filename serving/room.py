"""Room: how many inference requests may be inside one process, whichever way they came.

Whoever admits some counts its own: the InferenceService those that Python answers, the native lane,
where it stands in front, those that it answers itself. Knows neither transport.
"""

from __future__ import annotations

from typing import Protocol

from serving.inference import InferenceService


class Lane(Protocol):
    """What stands in front of Python, and admits requests by the same limit."""

    @property
    def in_flight(self) -> int:
        """Requests inside that it answers itself."""

    def passed_on(self, more: int) -> None:
        """So many more requests of streams are inside, which it does not see."""


class Room:
    """`limit` requests at most: one number for all, or what comes one way could crowd the other
    out."""

    def __init__(self, service: InferenceService, limit: int, lane: Lane | None = None) -> None:
        self._service = service
        self._limit = limit
        self._lane = lane

    def full(self, received: int = 0) -> bool:
        """Whether there is none for one more; `received` are inside, but not submitted yet."""
        natively = self._lane.in_flight if self._lane else 0
        return self._service.in_flight + received + natively >= self._limit

    def streamed(self, more: int) -> None:
        """So many more requests of streams are inside. Of calls the lane knows itself."""
        if self._lane:
            self._lane.passed_on(more)

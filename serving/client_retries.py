"""Which calls are repeated, when, and how often: decided here, waited for by either client.

gRPC's own retry policy does less than is wanted, by its design (A6, see below) and as it was tried
with grpcio 1.85. It waits out a deadline that its next attempt lies beyond, and then says
DEADLINE_EXCEEDED, so that the server's words are lost; a server's pushback has no jitter, so that
those who were pushed back together come back together; and its throttle counts the failures of a
whole channel, so that many callers who lose one connection to a restart may end its retries.
"""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field

import grpc

from serving.client_types import RequestFailed

# CANCELLED is how a server that ends tells it: who cancels a call here does not see its status.
REPEATED = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
)
# With this one, the server has not done what was asked: another may be asked without its being done
# twice.
UNDONE = (grpc.StatusCode.RESOURCE_EXHAUSTED,)
# How gRPC, in all its languages, refuses a message that will not be smaller the next time.
_TOO_LARGE = "message larger than max"
ATTEMPTS = 8
# Seconds: the longest pauses after the first failures are 0.2, 0.6 and 1.8.
_FIRST_PAUSE = 0.2
_GROWTH = 3.0
_LONGEST_PAUSE = 3.0
# Retries that a client has at first, and at most; and what each call that succeeds adds. Overload
# is then answered with a fifth more requests at worst.
_BUDGET = 100.0
_EARNED = 0.2


class RetryBudget:
    """How many retries a client may still make; shared by its threads."""

    def __init__(self) -> None:
        self._left = _BUDGET
        self._lock = threading.Lock()

    def earn(self) -> None:
        """A call has succeeded."""
        with self._lock:
            self._left = min(_BUDGET, self._left + _EARNED)

    def spend(self) -> bool:
        """Whether one more may be made."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True


@dataclass(slots=True)
class Retries:
    """The attempts of one call, which may be repeated after these statuses."""

    budget: RetryBudget
    codes: tuple[grpc.StatusCode, ...] = REPEATED
    failures: int = field(default=0, init=False)

    def pause(self, error: RequestFailed, left: float) -> float | None:
        """Seconds until the next attempt; None where there is to be none.

        `left` are the seconds until the deadline. Full jitter has callers that failed together
        come back apart; a server's pushback is waited for first. Those who would come back too
        late are told at once.
        https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback
        """
        self.failures += 1
        told = _pushback(error)
        permanent = error.code not in self.codes or _TOO_LARGE in str(error)
        if told is None or permanent or self.failures >= ATTEMPTS:
            return None
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * _GROWTH ** (self.failures - 1))
        pause = told + random.uniform(0.0, longest)  # nosec B311 # no secret
        return pause if pause < left and self.budget.spend() else None


def _pushback(error: RequestFailed) -> float | None:
    """Seconds that the server wants to be left alone for; None: for good."""
    if error.pushback is None:
        return 0.0
    try:
        milliseconds = int(error.pushback)
    except ValueError:
        return None
    return None if milliseconds < 0 else milliseconds / 1000

"""Latency against offered load: shares of what each server can do, open loop."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.serving.compare import FAILURES, Plan, pairs, progress
from benchmarks.serving.measure import single_images
from benchmarks.serving.open_loop import Offered, offer
from benchmarks.serving.session import Session, started
from benchmarks.serving.targets import OURS, OURS_INT8, TAIL_SHARE, TRITON
from benchmarks.serving.wire import WrongAnswer

# Of the capacity with 64 in flight; the one that is judged several times, as whatever holds a core
# for a hundredth of the seconds is a p99.
SHARES = (0.5, TAIL_SHARE, TAIL_SHARE, TAIL_SHARE, 0.9)
SERVERS = (OURS, OURS_INT8, TRITON)


def offered_loads(plan: Plan, save: Callable[[list[dict[str, Any]]], None]) -> list[dict[str, Any]]:
    """For each of those servers and each model its capacity, and what came of each share of it."""
    found: list[dict[str, Any]] = []
    for contestant, model in pairs(plan):
        if contestant.name not in SERVERS:
            continue
        entry: dict[str, Any] = {"contestant": contestant.name, "model": model.name, "loads": []}
        found.append(entry)
        try:
            with started(contestant, model, contestant.candidates[0], plan.cores) as session:
                session.checker.check_all()
                entry["capacity"] = single_images(session, plan.seconds).load.rate
                for share in SHARES:
                    load = offer_to(session, share * entry["capacity"], plan.seconds)
                    entry["loads"].append({"share": share, **asdict(load)})
                    progress(f"{contestant.name} {model.name} at {share:.0%}: {load}")
                session.checker.check_all()
        except FAILURES as error:
            entry["failure"] = str(error)
            progress(contestant.name, model.name, "failed:", error)
        save(found)
    return found


def offer_to(
    session: Session,
    rate: float,
    seconds: float,
    *,
    patience: float = math.inf,
    begins: Callable[[], None] = lambda: None,
) -> Offered:
    """Single images at random times; WrongAnswer where one of the answers is, or none was kept."""
    with tempfile.TemporaryDirectory() as scratch:
        found, answers = offer(
            session.target(1),
            session.request(1),
            rate=rate,
            seconds=seconds,
            scratch=Path(scratch),
            patience=patience,
            begins=begins,
        )
    if found.latency_ms and not answers:
        raise WrongAnswer("none of the answers was kept")
    session.checker.check_answers(answers)
    return found

"""Latency against offered load: shares of what each server can do, open loop."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.serving.compare import FAILURES, Plan, pairs, progress
from benchmarks.serving.measure import single_images
from benchmarks.serving.open_loop import Offered, offer
from benchmarks.serving.session import Session, started

SHARES = (0.25, 0.5, 0.7, 0.9, 1.0, 1.5)  # of the capacity with 64 in flight


def offered_loads(plan: Plan, save: Callable[[list[dict[str, Any]]], None]) -> list[dict[str, Any]]:
    """For each server and model its capacity, and what came of each share of it."""
    found: list[dict[str, Any]] = []
    for contestant, model in pairs(plan):
        if contestant.fixed:
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


def offer_to(session: Session, rate: float, seconds: float) -> Offered:
    """Single images at random times."""
    with tempfile.TemporaryDirectory() as scratch:
        return offer(
            session.port,
            session.contestant.protocol.infer,
            session.request(1),
            core=session.cores.load,
            rate=rate,
            seconds=seconds,
            scratch=Path(scratch),
        )

"""Which calls the clients repeat, and when: against servers that refuse as they are told, and one
that is overloaded."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from conftest import PATIENCE, TRANSPORTS, Digits, publish_classifier, running_server
from scripted import Refusal, Scripted, serving

from deploy.ports import reserved_port
from serving.async_client import AsyncClient
from serving.client import Client, RequestFailed
from serving.client_retries import ATTEMPTS, Retries, RetryBudget

CODE = grpc.StatusCode
Ask = Callable[..., object]


def by_thread(address: str, timeout: float = PATIENCE, **options: bool) -> object:
    with Client(address, **options) as client:  # type: ignore[arg-type]
        return client.quality(timeout=timeout)


def by_loop(address: str, timeout: float = PATIENCE, **options: bool) -> object:
    async def ask() -> object:
        async with AsyncClient(address, **options) as client:  # type: ignore[arg-type]
            return await client.quality(timeout=timeout)

    return asyncio.run(ask())


both = pytest.mark.parametrize("ask", [by_thread, by_loop])


@both
@pytest.mark.parametrize("code", [CODE.UNAVAILABLE, CODE.RESOURCE_EXHAUSTED, CODE.CANCELLED])
def test_a_refusal_that_may_pass_is_followed_by_another_attempt(
    ask: Ask, code: grpc.StatusCode
) -> None:
    script = Scripted([Refusal(code)] * 2)
    with serving(script) as address:
        assert ask(address) == []
    assert len(script.times) == 3


@both
@pytest.mark.parametrize("code", [CODE.INVALID_ARGUMENT, CODE.INTERNAL, CODE.DEADLINE_EXCEEDED])
def test_a_refusal_that_stays_is_told_at_once(ask: Ask, code: grpc.StatusCode) -> None:
    script = Scripted([Refusal(code)])
    with serving(script) as address, pytest.raises(RequestFailed, match="scripted") as caught:
        ask(address)
    assert (caught.value.code, len(script.times)) == (code, 1)


@both
def test_without_retry_each_call_is_one_attempt(ask: Ask) -> None:
    script = Scripted([Refusal(CODE.UNAVAILABLE)])
    with serving(script) as address, pytest.raises(RequestFailed, match="UNAVAILABLE: scripted"):
        ask(address, retry=False)
    assert len(script.times) == 1


@both
def test_a_message_that_is_too_large_is_not_sent_again(ask: Ask) -> None:
    words = "SERVER: Received message larger than max (9 vs. 8)"
    script = Scripted([Refusal(CODE.RESOURCE_EXHAUSTED, words)])
    with serving(script) as address, pytest.raises(RequestFailed, match="larger than max"):
        ask(address)
    assert len(script.times) == 1


@pytest.mark.parametrize(
    ("load_balancing", "code", "attempts"),
    [
        ("pick_first", CODE.UNAVAILABLE, 2),
        ("round_robin", CODE.UNAVAILABLE, 1),
        ("round_robin", CODE.RESOURCE_EXHAUSTED, 2),
    ],
)
def test_a_label_that_another_replica_may_count_again_is_not_repeated(
    load_balancing: str, code: grpc.StatusCode, attempts: int
) -> None:
    script = Scripted([Refusal(code)])
    with serving(script) as address, Client(address, load_balancing=load_balancing) as client:
        if attempts == 1:
            with pytest.raises(RequestFailed, match="scripted"):
                client.send_feedback(["id"], ["3"], timeout=PATIENCE)
        else:
            client.send_feedback(["id"], ["3"], timeout=PATIENCE)
    assert len(script.times) == attempts


def test_who_waits_for_a_server_waits_while_it_has_no_room_or_restarts() -> None:
    script = Scripted([Refusal(CODE.RESOURCE_EXHAUSTED), Refusal(CODE.CANCELLED)])
    with (
        serving(script) as address,
        Client(address) as client,
        pytest.raises(RequestFailed, match="has not loaded its models"),
    ):
        client.wait_until_ready(1.0)  # an empty answer is not ready
    assert len(script.times) > 2


def test_a_client_that_another_thread_closes_ends_its_calls_and_repeats_none() -> None:
    asked, over = threading.Event(), threading.Event()

    def hold() -> None:
        asked.set()
        over.wait(PATIENCE)

    script = Scripted([], before=hold)
    with serving(script) as address, ThreadPoolExecutor(1) as pool:
        client = Client(address)
        call = pool.submit(client.quality, timeout=PATIENCE)
        assert asked.wait(PATIENCE)
        client.close()
        with pytest.raises(RequestFailed, match="CANCELLED"):
            call.result()
        over.set()
        with pytest.raises(RequestFailed, match="CANCELLED: the client is closed"):
            client.quality()
    assert len(script.times) == 1


def test_a_client_that_another_task_closes_ends_its_calls_and_repeats_none() -> None:
    asked, over = threading.Event(), threading.Event()

    def hold() -> None:
        asked.set()
        over.wait(PATIENCE)

    async def closed_meanwhile(address: str) -> None:
        client = AsyncClient(address)
        call = asyncio.create_task(client.quality(timeout=PATIENCE))
        assert await asyncio.to_thread(asked.wait, PATIENCE)
        await client.close()
        with pytest.raises(RequestFailed, match="CANCELLED: the client is closed"):
            await call
        with pytest.raises(RequestFailed, match="CANCELLED: the client is closed"):
            await client.quality()

    script = Scripted([], before=hold)
    with serving(script) as address:
        asyncio.run(closed_meanwhile(address))
        over.set()
    assert len(script.times) == 1


@both
def test_no_attempt_is_made_before_the_server_wants_it(ask: Ask) -> None:
    script = Scripted([Refusal(CODE.RESOURCE_EXHAUSTED, pushback="400")] * 2)
    with serving(script) as address:
        ask(address)
    assert len(script.gaps) == 2
    assert min(script.gaps) >= 0.4


@both
@pytest.mark.parametrize("pushback", ["-1", "soon", ""])
def test_a_server_that_wants_no_further_attempt_gets_none(ask: Ask, pushback: str) -> None:
    script = Scripted([Refusal(CODE.UNAVAILABLE, "go away", pushback)])
    with serving(script) as address, pytest.raises(RequestFailed, match="UNAVAILABLE: go away"):
        ask(address)
    assert len(script.times) == 1


@both
def test_when_the_next_attempt_would_be_too_late_the_servers_words_are_told_at_once(
    ask: Ask,
) -> None:
    script = Scripted([Refusal(CODE.RESOURCE_EXHAUSTED, "full", str(int(PATIENCE * 1000)))])
    start = time.monotonic()
    with serving(script) as address, pytest.raises(RequestFailed, match="EXHAUSTED: full"):
        ask(address, timeout=PATIENCE)
    assert time.monotonic() - start < PATIENCE / 2


@both
def test_a_server_that_does_not_come_is_waited_for_and_the_reason_told(ask: Ask) -> None:
    start = time.monotonic()
    with pytest.raises(RequestFailed, match="failed to connect") as caught:
        ask(f"127.0.0.1:{reserved_port()}", timeout=2.0)
    assert caught.value.code is CODE.UNAVAILABLE
    assert time.monotonic() - start > 1.0  # the first pause is 0.2 s at most: it was waited for


def test_pauses_grow_are_drawn_from_all_up_to_the_longest_and_end() -> None:
    refused = RequestFailed(CODE.UNAVAILABLE, "")
    drawn = []
    for _ in range(200):
        retries = Retries(RetryBudget())
        drawn.append([retries.pause(refused, PATIENCE) for _ in range(ATTEMPTS)])
    assert {pauses[-1] for pauses in drawn} == {None}
    pauses = np.array([each[:-1] for each in drawn], float)  # (200, 7)
    longest = np.array([0.2, 0.6, 1.8, 3, 3, 3, 3])
    assert (pauses >= 0).all()
    assert (pauses <= longest).all()
    assert (pauses.min(axis=0) < longest * 0.1).all()
    assert (pauses.max(axis=0) > longest * 0.9).all()


def test_retries_stop_when_a_fifth_of_what_succeeds_is_spent() -> None:
    budget = RetryBudget()
    refused = RequestFailed(CODE.RESOURCE_EXHAUSTED, "")

    def retried(calls: int) -> int:
        return sum(Retries(budget).pause(refused, PATIENCE) is not None for _ in range(calls))

    assert retried(150) == 100
    for _ in range(50):
        budget.earn()
    assert retried(150) in (9, 10)  # fifths are no exact sums


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_overloaded_server_answers_all_who_come_again(
    transport: str, digits: Digits, tmp_path: Path
) -> None:
    publish_classifier(tmp_path, digits)
    images = np.resize(digits.images, (512, 28, 28))

    def ask(client: Client) -> str:
        try:
            client.classify(images, "classifier", timeout=PATIENCE, rows_per_request=512)
        except RequestFailed as error:
            return error.code.name
        return "OK"

    with (
        running_server(
            tmp_path, max_in_flight=2, max_batch_size=512, transport=transport
        ) as running,
        ThreadPoolExecutor(8) as pool,
    ):
        with Client(running.address, retry=False) as client:
            answers: Counter[str] = Counter()
            end = time.monotonic() + PATIENCE
            while set(answers) < {"OK", "RESOURCE_EXHAUSTED"} and time.monotonic() < end:
                answers.update(pool.map(ask, [client] * 8))
            assert set(answers) == {"OK", "RESOURCE_EXHAUSTED"}
        with Client(running.address) as client:
            assert Counter(pool.map(ask, [client] * 24)) == {"OK": 24}

"""The client for asyncio: the same as the other, without waiting in its thread."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from conftest import PATIENCE, Digits, Running, publish_classifier, running_server, until
from PIL import Image
from scripted import Refusal, Scripted, serving

from deploy.ports import reserved_port
from serving.async_client import AsyncClient
from serving.client import Client, RequestFailed
from serving.client_images import images_of


def public(kind: type) -> dict[str, Callable[..., object]]:
    return {name: each for name, each in vars(kind).items() if not name.startswith("_")}


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    one, other = public(Client), public(AsyncClient)
    assert list(one) == list(other)
    for name in one:
        signatures = [inspect.signature(each[name]) for each in (one, other)]
        assert signatures[0] == signatures[1]
        assert inspect.iscoroutinefunction(other[name])
    made = [inspect.signature(each.__init__) for each in (Client, AsyncClient)]
    assert made[0] == made[1]


def test_it_says_what_the_other_says(running: Running, digits: Digits) -> None:
    async def ask() -> None:
        async with AsyncClient(running.address) as client:
            answer = await client.classify(digits.images, "classifier")
            assert answer.labels == expected.labels
            assert (answer.probabilities == expected.probabilities).all()
            assert await client.models() == models
            assert await client.metadata("classifier") == metadata
            assert await client.server() == server
            assert [each.model for each in await client.statistics("classifier")] == ["classifier"]

    with Client(running.address) as client:
        expected = client.classify(digits.images, "classifier")
        models, metadata = client.models(), client.metadata("classifier")
        server = client.server()
    asyncio.run(ask())


def test_readiness_is_asked_and_waited_for(running: Running) -> None:
    async def ask() -> None:
        async with AsyncClient(running.address) as client:
            assert await client.ready()
            assert not await client.ready(model="nobody")
            await client.wait_until_ready(model="classifier")
            with pytest.raises(RequestFailed, match="is not served"):
                await client.wait_until_ready(0.2, model="nobody")

    asyncio.run(ask())


def test_its_predictions_are_told_their_truths(digits: Digits, tmp_path: Path) -> None:
    publish_classifier(tmp_path, digits)

    async def ask(address: str) -> None:
        async with AsyncClient(address) as client:
            answer = await client.classify(digits.images[:3], "classifier")
            assert (await client.feedback(answer[0], 7)).outcome == "counted"
            told = await client.feedback(answer, ["7", "3", "3"])
            assert [each.outcome for each in told] == ["repeated", "counted", "counted"]
            again = await client.send_feedback(answer.prediction_ids, ["3"] * 3)
            assert {each.outcome for each in again} == {"repeated"}
            (quality,) = await client.quality("classifier")
            assert quality.feedback_count == 3

    with running_server(tmp_path) as running:
        asyncio.run(ask(running.address))


def test_many_are_asked_at_the_same_time_pictures_among_them(
    running: Running, digits: Digits
) -> None:
    pictures = [Image.fromarray(image).resize((280, 280)) for image in digits.images[:20]]

    async def ask() -> None:
        async with AsyncClient(running.address) as client:
            calls = [client.classify(each, "classifier") for each in pictures]
            answers = await asyncio.gather(*calls)
        assert [each.labels[0] for each in answers] == expected

    with Client(running.address) as client:
        arrays = np.stack([images_of(each)[0] for each in pictures])
        expected = list(client.classify(arrays, "classifier").labels)
    assert set(expected) == {"3", "7"}
    asyncio.run(ask())


def test_a_refusal_carries_the_servers_status_and_words(running: Running, digits: Digits) -> None:
    async def ask() -> None:
        async with AsyncClient(running.address) as client:
            await client.classify(digits.images[:1], "resnet")

    with pytest.raises(RequestFailed, match="model 'resnet' is unknown") as caught:
        asyncio.run(ask())
    assert caught.value.code is grpc.StatusCode.NOT_FOUND


def test_the_loop_goes_on_while_a_retry_is_waited_for_and_may_cancel_it() -> None:
    script = Scripted([Refusal(grpc.StatusCode.UNAVAILABLE, pushback=str(int(PATIENCE * 500)))])

    async def ask(address: str) -> None:
        async with AsyncClient(address) as client:
            asked = asyncio.create_task(client.quality(timeout=PATIENCE))
            await asyncio.to_thread(until, lambda: bool(script.times))
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked

    start = time.monotonic()
    with serving(script) as address:
        asyncio.run(ask(address))
    assert time.monotonic() - start < PATIENCE / 2


def test_a_token_goes_with_each_call_and_nowhere_else() -> None:
    script = Scripted([])

    async def ask(address: str) -> None:
        async with AsyncClient(address, token="s3cret") as client:
            await client.quality()
            assert "s3cret" not in repr(client)

    with serving(script) as address:
        asyncio.run(ask(address))
    assert [each["authorization"] for each in script.metadata] == ["Bearer s3cret"]


def test_a_restart_is_a_slow_answer(digits: Digits, tmp_path: Path) -> None:
    publish_classifier(tmp_path, digits)
    port = reserved_port()

    async def ask() -> None:
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            for _ in range(2):
                asked = [
                    client.classify(digits.images[:2], "classifier", timeout=PATIENCE)
                    for _ in range(5)
                ]
                answers = asyncio.gather(*asked)  # they begin before there is a server
                with running_server(tmp_path, grpc_port=port):
                    assert {each.version for each in await answers} == {"1"}

    asyncio.run(ask())

"""Versions come and go under load: no request fails, and each is answered by whom it names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import publish_times, running_server, under_load

SWAPS = 12


@pytest.mark.parametrize("policy", ["latest:1", "latest:2"])
def test_no_request_fails_while_versions_are_published_and_deleted(
    tmp_path: Path, policy: str, transport: str
) -> None:
    versions = [publish_times(tmp_path)]
    options = {"poll_interval": 0.05, "version_policy": policy}
    with running_server(tmp_path, transport=transport, **options) as running:
        with under_load(running.address, clients=4) as load:
            for number in range(2, SWAPS + 2):
                versions.append(publish_times(tmp_path))
                assert load.wait_for(str(number))
                if number % 3 == 0:
                    shutil.rmtree(versions[-2])  # at once, while it may still be served
        assert load.faults == []
        assert load.versions == {str(number) for number in range(1, SWAPS + 2)}


def test_no_request_fails_when_several_instances_and_buckets_are_swapped(
    tmp_path: Path, transport: str
) -> None:
    publish_times(tmp_path)
    options = {"instance_count": 2, "max_batch_size": 8, "batch_buckets": (1, 4, 8)}
    options |= {"poll_interval": 0.05, "max_queue_delay": 0.002}
    with running_server(tmp_path, transport=transport, **options) as running:
        with under_load(running.address, clients=4) as load:
            for number in range(2, SWAPS + 2):
                publish_times(tmp_path)
                assert load.wait_for(str(number))
        assert load.faults == []

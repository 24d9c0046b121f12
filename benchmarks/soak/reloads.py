"""A repository of two copies of one version's model: one that stays, one that is reloaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import grpc

from model_repository import (
    HOLDOUT,
    ONNX_PLATFORM,
    Draft,
    publish,
    read_manifest,
    staging,
    versions,
)
from serving.pb import inference_pb2 as pb
from serving.pb import inference_pb2_grpc as pb_grpc

STAYS, MOVES = "stays", "moves"
KEPT = 2  # versions on disk
TIMEOUT = 60.0  # seconds for one RPC


class Reloads:
    """Each unloads a version and loads it again, or, if they publish, swaps it for a new one."""

    def __init__(self, source: Path, repository: Path, *, publish: bool) -> None:
        self._source = source
        self._repository = repository
        self._publishes = publish
        self.done = 0
        for name in (STAYS, MOVES):
            self._publish(name)

    def reload(self, channel: grpc.Channel) -> None:
        """One more, until what it loads is served."""
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        if self._publishes:
            self._publish(MOVES)
        else:
            asked = pb.RepositoryModelUnloadRequest(model_name=MOVES)
            stub.RepositoryModelUnload(asked, timeout=TIMEOUT)
        stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=MOVES), timeout=TIMEOUT)
        self.done += 1
        for version in versions(self._repository / MOVES)[:-KEPT]:
            shutil.rmtree(self._repository / MOVES / str(version))

    def _publish(self, name: str) -> None:
        manifest = read_manifest(self._source)
        variants = tuple(each for each in manifest.variants if each.platform == ONNX_PLATFORM)
        facts: dict[str, object] = {"labels": manifest.labels, "quality": manifest.quality}
        files = {each.file for each in variants}
        with staging(self._repository) as directory:
            for each in (*files, HOLDOUT):
                if (self._source / each).exists():
                    shutil.copyfile(self._source / each, directory / each)
            publish(directory, Draft(name, manifest.inputs, manifest.outputs, variants, facts))

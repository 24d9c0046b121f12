"""What HTTP's routes answer from: the very parts that gRPC's calls are answered by."""

from __future__ import annotations

from dataclasses import dataclass

from serving.authorization import Authorization
from serving.classifier import Classifier
from serving.config import ServerConfig
from serving.digits import DigitsServicer
from serving.http.bodies import Bodies
from serving.http.history import History
from serving.inference import InferenceService
from serving.room import Room
from serving.servicer import InferenceServicer


@dataclass(frozen=True, slots=True)
class Services:
    """`v2` and `digits` have a method for each unary RPC, of the request and who asks;
    what is inferred goes to `inference`, where there is `room`, and images to the threads and the
    registry of `classifier`. `bodies` counts what is being received."""

    config: ServerConfig
    inference: InferenceService
    v2: InferenceServicer
    digits: DigitsServicer
    room: Room
    classifier: Classifier
    history: History
    bodies: Bodies
    authorization: Authorization

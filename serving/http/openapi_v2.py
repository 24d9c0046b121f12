"""Of the OpenAPI document, what is V2's: KServe's paths, and Triton's extensions of them.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
https://github.com/triton-inference-server/server/tree/main/docs/protocol
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from serving.datatypes import DATATYPES
from serving.http.openapi_parts import (
    BYTES,
    Part,
    answer,
    array,
    in_header,
    in_path,
    mapping,
    one_of,
    operation,
    or_null,
    record,
    ref,
    sent,
    text,
    truth,
    whole,
)
from serving.registry import State

SERVER, MODELS, ADMIN = "V2: server", "V2: models", "V2: administration"

MODEL = in_path("model", "The model's name.", "^[A-Za-z0-9][A-Za-z0-9_.-]*$")
VERSION = in_path("version", "The version's number.", "^[1-9][0-9]{0,17}$")
_JSON_LENGTH = in_header(
    "Inference-Header-Content-Length",
    "How many bytes of the body are JSON; the rest is binary tensor data.",
    whole(),
)
# What stands for a model's latest version, and what for one of its versions.
_ADDRESSES: Mapping[str, tuple[str, Sequence[Part]]] = {
    "model": ("/v2/models/{model}", (MODEL,)),
    "version": ("/v2/models/{model}/versions/{version}", (MODEL, VERSION)),
}
_ABSENT = (404, 503)  # unknown, or not ready


def paths() -> Part:
    """By path, then method."""
    found = {
        "/v2": {"get": _server()},
        "/v2/health/live": {"get": _live()},
        "/v2/health/ready": {"get": _ready()},
        "/v2/models/stats": {"get": _all_statistics()},
    }
    for each, (path, parameters) in _ADDRESSES.items():
        found |= _of_model(each, path, parameters)
    return {**found, **_repository(), **_settings(), **_shared_memory()}


def _server() -> Part:
    metadata = answer("Name, version, extensions.", json=ref("ServerMetadata"))
    return operation("serverMetadata", SERVER, "What the server is", {200: metadata})


def _live() -> Part:
    live = answer("It does.", json=ref("ServerLive"))
    return operation("serverLive", SERVER, "Whether the process answers", {200: live})


def _ready() -> Part:
    return operation(
        "serverReady",
        SERVER,
        "Whether requests may be sent",
        {
            200: answer("They may.", json=ref("ServerReady")),
            503: answer("Not now.", json=ref("ServerReady")),
        },
    )


def _all_statistics() -> Part:
    found = answer("Of what is served.", json=ref("Statistics"))
    return operation("statistics", MODELS, "Counts and durations of all models", {200: found})


def _of_model(each: str, path: str, parameters: Sequence[Part]) -> Part:
    """The paths of a model, or of one version."""

    def get(name: str, summary: str, schema: str) -> Part:
        told = {200: answer("Of what is served.", json=ref(schema))}
        return {
            "get": operation(each + name, MODELS, summary, told, _ABSENT, parameters=parameters)
        }

    return {
        path: get("Metadata", "Tensors, platform and classes", "ModelMetadata"),
        f"{path}/ready": {"get": _model_ready(each, parameters)},
        f"{path}/config": get("Config", "How it is batched and where it runs", "ModelConfig"),
        f"{path}/stats": get("Statistics", "Counts and durations", "Statistics"),
        f"{path}/infer": {"post": _infer(each, parameters)},
    }


def _model_ready(each: str, parameters: Sequence[Part]) -> Part:
    told = {
        200: answer("It is.", json=ref("ModelReady")),
        503: answer("It is not, or is unknown.", json=ref("ModelReady")),
    }
    return operation(f"{each}Ready", MODELS, "Whether it is served", told, parameters=parameters)


def _infer(each: str, parameters: Sequence[Part]) -> Part:
    return operation(
        f"{each}Infer",
        MODELS,
        "Ask the model",
        {
            200: answer(
                "The outputs; in a binary body, those asked for as such follow the JSON.",
                json=ref("InferResponse"),
                binary=BYTES,
            )
        },
        (*_ABSENT, 429, 501, 504),
        parameters=[*parameters, _JSON_LENGTH],
        body=sent(json=ref("InferRequest"), binary=BYTES),
        description="JSON takes up to 4 MiB; tensors that follow it as binary data may be larger.",
    )


def _repository() -> Part:
    """What there is, and what is served of it."""
    index = {200: answer("By name, then version.", json=array(ref("IndexEntry")))}
    ready = record({}, {"ready": or_null(truth("Whether only those that are served."))})
    models = "/v2/repository/models/{model}"
    return {
        "/v2/repository/index": {
            "post": operation(
                "repositoryIndex",
                ADMIN,
                "Every version that is known of, and why it is not served",
                index,
                body=sent(required=False, json=ready),
            )
        },
        f"{models}/load": {"post": _change("Load", "Load a model in all workers", "Loaded")},
        f"{models}/unload": {"post": _change("Unload", "Unload it in all workers", "Unloaded")},
    }


def _change(name: str, summary: str, schema: str) -> Part:
    given = record({}, {"parameters": or_null(mapping({}, "Of loading, none is taken."))})
    return operation(
        f"repositoryModel{name}",
        ADMIN,
        summary,
        {200: answer("Done.", json=ref(schema))},
        (404, 503),
        parameters=[MODEL],
        body=sent(required=False, json=given),
    )


def _settings() -> Part:
    """What may be read, and changed by an administrator."""
    server, model = "/v2/trace/setting", "/v2/models/{model}/trace/setting"
    return {
        server: _setting("traceSetting", "what is traced", "TraceSettings"),
        model: _setting("modelTraceSetting", "what is traced", "TraceSettings", [MODEL]),
        "/v2/logging": _setting("logging", "what is logged", "LogSettings"),
    }


def _setting(name: str, what: str, schema: str, parameters: Sequence[Part] = ()) -> Part:
    holds = {200: answer("What holds.", json=ref(schema))}
    absent = _ABSENT if parameters else ()
    body = sent(required=False, json=ref(schema))
    change = f"Change {what}"
    return {
        "get": operation(name, ADMIN, f"Tell {what}", holds, absent, parameters=parameters),
        "post": operation(
            f"{name}Change", ADMIN, change, holds, absent, parameters=parameters, body=body
        ),
    }


def _shared_memory() -> Part:
    """Paths of Triton's that say that there is none."""
    region = in_path("name", "The region's name.", "^[A-Za-z0-9_.-]+$")
    found: Part = {}
    for kind in ("system", "cuda"):
        for method, end in _REGIONS:
            name = "".join(map(str.capitalize, end.replace("{name}", "one").split("/")))
            there = [region] if "{name}" in end else []
            summary = "Not implemented: send tensors in the request"
            found[f"/v2/{kind}sharedmemory/{end}"] = {
                method: operation(
                    f"{kind}Memory{name}", ADMIN, summary, {}, (501,), parameters=there
                )
            }
    return found


_REGIONS = (
    ("get", "status"),
    ("get", "region/{name}/status"),
    ("post", "region/{name}/register"),
    ("post", "unregister"),
    ("post", "region/{name}/unregister"),
)


def schemas() -> Part:
    """What the paths refer to."""
    return {
        "ServerMetadata": record({"name": text(), "version": text(), "extensions": array(text())}),
        "ServerLive": record({"live": truth()}),
        "ServerReady": record({"ready": truth()}),
        "ModelReady": record({"name": text(), "ready": truth()}),
        "IndexEntry": record(
            {"name": text(), "version": text(), "state": one_of(tuple(State)), "reason": text()}
        ),
        "Loaded": record({"model_name": text(), "is_loaded": truth()}),
        "Unloaded": record({"model_name": text(), "is_unloaded": truth()}),
        "TraceSettings": mapping({"type": ["string", "array", "integer", "null"]}),
        "LogSettings": mapping({"type": ["boolean", "integer", "string"]}),
        **_of_models(),
        **_of_inference(),
        **_of_statistics(),
    }


def _of_models() -> Part:
    sizes = array(whole(minimum=-1), "-1 is variable.")
    tensor = record({"name": text(), "datatype": one_of(tuple(DATATYPES)), "shape": sizes})
    dims = record({"name": text(), "data_type": text(), "dims": sizes})
    return {
        "TensorMetadata": tensor,
        "ModelMetadata": record(
            {
                "name": text(),
                "versions": array(text(), "Those that are served."),
                "platform": text(),
                "inputs": array(ref("TensorMetadata")),
                "outputs": array(ref("TensorMetadata")),
            },
            {"labels": array(text(), "Of the classes."), "notes": array(text())},
        ),
        "ModelConfig": record(
            {
                "name": text(),
                "platform": text(),
                "backend": text(),
                "max_batch_size": whole("Rows; 0: requests are not batched."),
                "input": array(dims),
                "output": array(dims),
            },
            description="As Triton's ModelConfig, of which it has more fields than are listed.",
        ),
    }


def _of_inference() -> Part:
    data = {"type": ["number", "boolean", "string", "array"]}
    named = {"name": text(), "shape": array(whole()), "datatype": one_of(tuple(DATATYPES))}
    values = array(data, "In row-major order, flat or nested; none of binary data.")
    given = {"parameters": or_null(ref("Parameters"))}
    wanted = record({"name": text()}, given)
    return {
        "Parameters": mapping({"type": ["boolean", "number", "string"]}),
        "InputTensor": record(named, {**given, "data": values}),
        "OutputTensor": record(named, {"parameters": ref("Parameters"), "data": values}),
        "InferRequest": record(
            {"inputs": array(ref("InputTensor"))},
            {
                **given,
                "id": or_null(text("Is echoed.")),
                "outputs": or_null(array(wanted, "All of them where it is not there.")),
            },
            examples=[{"inputs": [_EXAMPLE]}],
        ),
        "InferResponse": record(
            {
                "model_name": text(),
                "model_version": text(),
                "outputs": array(ref("OutputTensor")),
            },
            {"id": text(), "parameters": ref("Parameters")},
        ),
    }


_EXAMPLE = {"name": "x", "datatype": "FP32", "shape": [2, 1], "data": [0.5, 2.0]}


def _of_statistics() -> Part:
    stages = ("compute_input", "compute_infer", "compute_output")
    of_requests = ("success", "fail", "queue", *stages)
    durations = {name: ref("Duration") for name in of_requests}
    batch = record({"batch_size": whole(), **{name: ref("Duration") for name in stages}})
    return {
        "Duration": record({"count": whole(), "ns": whole("In all, nanoseconds.")}),
        "ModelStatistics": record(
            {
                "name": text(),
                "version": text(),
                "last_inference": whole("Milliseconds since 1970."),
                "inference_count": whole("Rows."),
                "execution_count": whole("Batches."),
                "inference_stats": record(durations),
                "batch_stats": array(batch),
            }
        ),
        "Statistics": record({"model_stats": array(ref("ModelStatistics"))}),
    }

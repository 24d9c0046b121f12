"""Models as the V2 messages describe them: metadata, configuration, statistics, index."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from model_repository import TensorSpec
from serving.config import ServerConfig, VersionPolicy
from serving.pb import inference_pb2 as pb
from serving.registry import ServedModel, State, VersionState
from serving.statistics import Duration, ModelTotals

EXTENSIONS = (
    "classification",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
    "trace",
    "logging",
    "parameters",
)


def metadata(served: ServedModel, versions: Iterable[int]) -> pb.ModelMetadataResponse:
    """Tensors, class labels, and the versions of the model that are served."""
    manifest = served.manifest
    response = pb.ModelMetadataResponse(
        name=manifest.name,
        versions=map(str, versions),
        platform=served.model.variant.platform,
        labels=manifest.labels,
        notes=served.model.notes,
    )
    for spec in manifest.inputs:
        response.inputs.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    for spec in manifest.outputs:
        response.outputs.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    return response


def config(served: ServedModel, settings: ServerConfig) -> pb.ModelConfigResponse:
    """How the model is served, as Triton would configure it."""
    manifest, variant = served.manifest, served.model.variant
    described = pb.ModelConfig(
        name=manifest.name,
        platform=variant.platform,
        backend="onnxruntime",
        max_batch_size=served.max_batch_size,
        default_model_filename=variant.file,
        version_policy=_version_policy(settings.version_policy),
    )
    for spec in manifest.inputs:
        described.input.add(name=spec.name, data_type=_type(spec), dims=_dims(served, spec))
    for spec in manifest.outputs:
        described.output.add(name=spec.name, data_type=_type(spec), dims=_dims(served, spec))
    gpu = served.model.device == "gpu"
    kinds = pb.ModelInstanceGroup
    described.instance_group.add(
        name=f"{manifest.name}_0",
        count=settings.instance_count,
        kind=kinds.KIND_GPU if gpu else kinds.KIND_CPU,
        gpus=[0] if gpu else [],
    )
    if served.max_batch_size:
        described.dynamic_batching.CopyFrom(_batching(settings))
    parameters = {
        "precision": variant.precision,
        "provider": served.model.provider,
        "notes": "; ".join(served.model.notes),
    }
    for name, text in parameters.items():
        if text:
            described.parameters[name].string_value = text
    return pb.ModelConfigResponse(config=described)


def statistics(
    versions: Iterable[tuple[str, str, ModelTotals]],
) -> pb.ModelStatisticsResponse:
    """Counts and durations of each (name, version); Triton's durations are nanoseconds."""
    response = pb.ModelStatisticsResponse()
    for name, version, totals in versions:
        response.model_stats.append(_statistics(name, version, totals))
    return response


def index(states: Sequence[VersionState], ready: bool) -> pb.RepositoryIndexResponse:
    """Every version that is known of, or only those that are served."""
    response = pb.RepositoryIndexResponse()
    for each in states:
        if not ready or each.state is State.READY:
            response.models.add(
                name=each.name, version=str(each.version), state=each.state, reason=each.reason
            )
    return response


def _type(spec: TensorSpec) -> pb.DataType.ValueType:
    name = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return pb.DataType.Value(f"TYPE_{name}")


def _dims(served: ServedModel, spec: TensorSpec) -> Sequence[int]:
    """Without the batch dimension, which max_batch_size implies."""
    return spec.shape[1:] if served.max_batch_size else spec.shape


def _version_policy(text: str) -> pb.ModelVersionPolicy:
    policy, message = VersionPolicy.parse(text), pb.ModelVersionPolicy()
    if policy.specific is not None:
        message.specific.versions.extend(policy.specific)
    elif policy.latest is not None:
        message.latest.num_versions = policy.latest
    else:
        message.all.SetInParent()
    return message


def _batching(settings: ServerConfig) -> pb.ModelDynamicBatching:
    return pb.ModelDynamicBatching(
        preferred_batch_size=settings.buckets,
        max_queue_delay_microseconds=round(settings.max_queue_delay * 1e6),
        priority_levels=settings.priority_levels,
        default_priority_level=settings.priority_levels,
        default_queue_policy=pb.ModelQueuePolicy(
            allow_timeout_override=True, max_queue_size=settings.max_queue_size
        ),
    )


def _statistics(name: str, version: str, totals: ModelTotals) -> pb.ModelStatistics:
    message = pb.ModelStatistics(
        name=name,
        version=version,
        last_inference=totals.last_inference,
        inference_count=totals.inference_count,
        execution_count=totals.execution_count,
        inference_stats=pb.InferStatistics(
            success=_duration(totals.success),
            fail=_duration(totals.fail),
            queue=_duration(totals.queue),
            compute_input=_duration(totals.compute_input),
            compute_infer=_duration(totals.compute_infer),
            compute_output=_duration(totals.compute_output),
        ),
    )
    for each in totals.batches.values():
        message.batch_stats.add(
            batch_size=each.rows,
            compute_input=_duration(Duration(each.count, each.compute_input_seconds)),
            compute_infer=_duration(Duration(each.count, each.compute_infer_seconds)),
            compute_output=_duration(Duration(each.count, each.compute_output_seconds)),
        )
    return message


def _duration(duration: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.count, ns=round(duration.seconds * 1e9))

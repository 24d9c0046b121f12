"""The dashboard of traffic, latency, batches, saturation and processes."""

from __future__ import annotations

from deploy.grafana.expressions import HERE, MODELS, buckets, mean, quantile, rate, variables
from deploy.grafana.panels import Json, Panel, Query, dashboard, heatmap, latest, lines, stat, table

STAGES = ("queue", "compute_input", "compute_infer", "compute_output")


def board() -> Json:
    """Traffic, latency, batches, saturation, processes."""
    return dashboard(
        "digits-serving",
        "digits: serving",
        "What is asked, how fast it is answered, and how much room is left.",
        variables(),
        {
            "Now": _now(),
            "Traffic": _traffic(),
            "Latency": _latency(),
            "Batches": _batches(),
            "Saturation": _saturation(),
            "Processes and models": _processes(),
        },
    )


def _now() -> list[Panel]:
    errors = "sum(model:inference_errors:increase5m)"
    asked = f"sum(increase(inference_requests_total{HERE}[5m]))"
    return [
        stat(
            "Requests",
            "Requests per second, all statuses.",
            "reqps",
            Query(rate("inference_requests_total")),
        ),
        stat(
            "Failed by the server's fault",
            "Of all models' requests over 5 minutes; what callers did wrong is not in it.",
            "percentunit",
            Query(f"{errors} / ({asked} > 0)"),
            *((None, "green"), (0.001, "orange"), (0.0144, "red")),
            decimals=2,
        ),
        stat(
            "p99 latency",
            "Of answered requests, from arrival to answer, to within a bucket.",
            "s",
            Query(quantile(0.99, "inference_request_seconds")),
            *((None, "green"), (0.2, "red")),
        ),
        stat(
            "Rows",
            "Rows per second: a request has one or more.",
            "short",
            Query(rate("inference_inferences_total")),
        ),
        stat(
            "Versions ready",
            "Model versions that every worker of a server serves, over all servers.",
            "short",
            Query(f"sum(inference_model_ready{MODELS})"),
            *((None, "red"), (1, "green")),
        ),
        stat(
            "Servers up",
            "Servers whose metrics can be scraped.",
            "short",
            Query(f"sum(up{HERE})"),
            *((None, "red"), (1, "green")),
        ),
    ]


def _traffic() -> list[Panel]:
    return [
        lines(
            "Requests by status",
            "gRPC statuses, also of requests that named no model that is loaded.",
            "reqps",
            Query(rate("inference_requests_total", "code", of=HERE), "{{code}}"),
            stacked=True,
        ),
        lines(
            "Requests by model",
            "Answered or not, by the version that was asked.",
            "reqps",
            Query(rate("inference_requests_total", "model", "version"), "{{model}} {{version}}"),
            stacked=True,
        ),
        lines(
            "Bytes",
            "Of requests that were read, and of answers.",
            "Bps",
            Query(rate("inference_request_bytes_total"), "requests"),
            Query(rate("inference_response_bytes_total"), "answers"),
        ),
    ]


def _latency() -> list[Panel]:
    seconds = "inference_request_seconds"
    promised = Query("slo:inference_request_seconds:p99", "promised p99")
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    return [
        heatmap(
            "Latency",
            "How many answered requests took how long, from arrival to answer.",
            "s",
            buckets(seconds),
        ),
        lines(
            "Latency quantiles",
            "To within a bucket: 1, 2 or 5 times a power of ten.",
            "s",
            *(Query(quantile(share, seconds), name) for name, share in shares.items()),
            promised,
        ),
        lines(
            "Where a request's time goes",
            "Mean seconds of each stage; those of computing are per batch.",
            "s",
            *(Query(mean(f"inference_{stage}_seconds"), stage) for stage in STAGES),
            stacked=True,
        ),
    ]


def _batches() -> list[Panel]:
    return [
        lines(
            "Rows per batch",
            "Mean and 95th percentile: grows with the load.",
            "short",
            Query(mean("inference_batch_rows"), "mean"),
            Query(quantile(0.95, "inference_batch_rows"), "p95"),
        ),
        heatmap(
            "Rows per request",
            "As callers send them.",
            "short",
            buckets("inference_request_rows"),
        ),
        lines(
            "Rows and batches per second",
            "Rows that ran, and the batches that they ran in.",
            "short",
            Query(rate("inference_inferences_total"), "rows"),
            Query(rate("inference_executions_total"), "batches"),
        ),
    ]


def _saturation() -> list[Panel]:
    return [
        lines(
            "Waiting",
            "Requests in the queues, and how many may be there before more are refused.",
            "short",
            Query(f"sum by (model) (inference_pending_requests{MODELS})", "{{model}}"),
            Query(f"sum by (model) (inference_queue_limit_requests{MODELS})", "limit of {{model}}"),
        ),
        lines(
            "Inside",
            "Requests waiting or running, of all models, and how many may be.",
            "short",
            Query(f"sum(inference_in_flight_requests{HERE})", "inside"),
            Query(f"sum(inference_in_flight_limit_requests{HERE})", "limit"),
        ),
        lines(
            "Instances busy",
            "Share of what may run at the same time that does; at 1 the model is the limit.",
            "percentunit",
            Query(f"model_version:inference_instances_busy:ratio_avg5m{MODELS}", "{{model}}"),
            most=1,
        ),
        lines(
            "Refused and failed, by why",
            "Requests that were not answered; `overloaded` ones were refused unread.",
            "reqps",
            Query(rate("inference_rejected_total", "reason", of=HERE), "{{reason}}"),
            width=12,
            stacked=True,
        ),
        lines(
            "Share of the room that is taken",
            "Of the queue by model, and of what may be inside; beyond 1, requests are refused.",
            "percentunit",
            Query(f"model_version:inference_pending_per_limit:ratio{MODELS}", "queue of {{model}}"),
            Query("job:inference_in_flight_per_limit:ratio", "inside"),
            width=12,
            threshold=0.8,
            most=1,
        ),
    ]


def _processes() -> list[Panel]:
    info = f"inference_model_info{MODELS} == 1"
    labels = "model, version, precision, device, provider"
    hidden = {"Time": True, "Value": True}
    return [
        lines(
            "CPU",
            "Cores that all processes of a server use.",
            "short",
            Query(
                f"sum by (instance) (rate(process_cpu_seconds_total{HERE}[$__rate_interval]))",
                "{{instance}}",
            ),
            width=6,
        ),
        lines(
            "Process memory",
            "Resident, of all processes of a server; a page that is shared counts in each.",
            "bytes",
            Query(f"sum by (instance) (process_resident_memory_bytes{HERE})", "{{instance}}"),
            width=6,
        ),
        lines(
            "Workers",
            "Processes that serve, and how many died and were replaced.",
            "short",
            Query(f"sum(inference_workers{HERE})", "serve"),
            Query(f"sum(inference_worker_restarts_total{HERE})", "died"),
            width=6,
        ),
        lines(
            "Refused versions",
            "Versions that were not loaded, by what is wrong with them.",
            "short",
            Query(
                f"sum by (model, version, reason) (inference_model_load_failures_total{MODELS})",
                "{{model}} {{version}}: {{reason}}",
            ),
            width=6,
        ),
        table(
            "What runs",
            "Versions that are served, and how.",
            "short",
            latest(f"max by ({labels}) ({info})"),
            transformations=[{"id": "organize", "options": {"excludeByName": hidden}}],
        ),
        lines(
            "Loading",
            "Seconds that loading a version took, in the slowest worker.",
            "s",
            Query(
                f"max by (model, version) (inference_model_load_seconds{MODELS})",
                "{{model}} {{version}}",
            ),
        ),
        lines(
            "Ready",
            "1 when every worker of the server serves the version.",
            "short",
            Query(
                f"min by (model, version) (inference_model_ready{MODELS})", "{{model}} {{version}}"
            ),
            most=1,
        ),
    ]

"""What panels ask Prometheus: of the chosen models, over Grafana's own intervals."""

from __future__ import annotations

from deploy.grafana.panels import Json, datasource_variable, label_variable

OF = 'job="digits",model=~"$model",version=~"$version"'
HERE = '{job="digits"}'
MODELS = f"{{{OF}}}"


def rate(metric: str, *by: str, of: str = MODELS) -> str:
    """Per second, summed over what `by` does not name."""
    return f"sum by ({', '.join(by)}) (rate({metric}{of}[$__rate_interval]))"


def buckets(metric: str) -> str:
    """A histogram's, for a heat map."""
    return f"sum by (le) (increase({metric}_bucket{MODELS}[$__rate_interval]))"


def quantile(share: float, metric: str) -> str:
    """Seconds, or rows, within which that share lies."""
    return f"histogram_quantile({share}, {rate(metric + '_bucket', 'le')})"


def mean(metric: str) -> str:
    """Of what a histogram was told; no value while it was told nothing."""
    return f"{rate(metric + '_sum')} / ({rate(metric + '_count')} > 0)"


def recorded(name: str) -> str:
    """A recording rule's value for the chosen versions."""
    return f"model_version:inference_{name}{MODELS}"


def variables() -> list[Json]:
    """Prometheus, models and versions: what who looks chooses."""
    return [
        datasource_variable(),
        label_variable("model", f"label_values(inference_model_ready{HERE}, model)"),
        label_variable(
            "version", 'label_values(inference_model_ready{job="digits",model=~"$model"}, version)'
        ),
    ]

"""``python -m deploy.kubernetes`` writes the PrometheusRule, which a test checks is up to date.

kustomize cannot put a file's content into a resource: the rules and alerts that Prometheus reads
elsewhere would have to be kept twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

PROMETHEUS = Path(__file__).parent.parent / "prometheus"
SOURCES = ("recording_rules.yml", "alerts.yml")
WRITTEN = Path(__file__).parent / "components" / "monitoring" / "prometheus-rule.yaml"
HEAD = "# Written by `python -m deploy.kubernetes` from deploy/prometheus: change it there.\n"


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # yaml has no types
    """Expressions of several lines stay legible; lists are indented as in all other manifests."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def rule() -> dict[str, Any]:
    """The groups of all rules and alerts, as the Prometheus operator takes them."""
    texts = [(PROMETHEUS / name).read_text(encoding="utf-8") for name in SOURCES]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {
            "name": "digits",
            "namespace": "digits",
            "labels": {"app.kubernetes.io/name": "digits"},
        },
        "spec": {"groups": [group for text in texts for group in yaml.safe_load(text)["groups"]]},
    }


def text() -> str:
    """As it is committed."""
    dumped: str = yaml.dump(rule(), Dumper=_Dumper, sort_keys=False, width=1000)
    return HEAD + dumped


if __name__ == "__main__":
    WRITTEN.write_text(text(), encoding="utf-8")

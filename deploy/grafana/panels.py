"""Grafana's panels as JSON: one function a kind. Knows no metric.

The model is that of dashboard schema 39 (Grafana 10 and 11):
https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]

SCHEMA = 39
WIDTH = 24  # columns of the grid
DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True)
class Query:
    """An expression, and what its series are called."""

    expression: str
    legend: str = ""
    format: str = "time_series"
    instant: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel; its place in the grid follows from the order and the widths."""

    kind: str
    title: str
    description: str
    queries: Sequence[Query]
    unit: str
    width: int
    height: int
    custom: Json = field(default_factory=dict)  # of fieldConfig.defaults
    options: Json = field(default_factory=dict)
    defaults: Json = field(default_factory=dict)  # more of fieldConfig.defaults
    transformations: Sequence[Json] = ()


def lines(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    width: int = 8,
    stacked: bool = False,
    threshold: float | None = None,
    most: float | None = None,
) -> Panel:
    """Values over time; a threshold is a line, `most` the axis's end."""
    custom: Json = {
        "lineWidth": 1,
        "fillOpacity": 25 if stacked else 5,
        "showPoints": "never",
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "off" if threshold is None else "line"},
    }
    defaults: Json = {} if most is None else {"max": most}
    if threshold is not None:
        defaults["thresholds"] = _steps((None, "green"), (threshold, "red"))
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
    options: Json = {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    return Panel(
        *("timeseries", title, description, queries, unit, width, 8),
        custom=custom,
        options=options,
        defaults=defaults,
    )


def heatmap(title: str, description: str, unit: str, expression: str, width: int = 8) -> Panel:
    """A histogram's buckets over time; the expression is `sum by (le)` of their increase."""
    options: Json = {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Blues", "scale": "exponential", "exponent": 0.5},
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "yHistogram": True},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": unit},
    }
    query = Query(expression, "{{le}}", "heatmap")
    return Panel("heatmap", title, description, (query,), "short", width, 8, options=options)


def stat(
    title: str,
    description: str,
    unit: str,
    query: Query,
    *steps: tuple[float | None, str],
    width: int = 4,
    decimals: int | None = None,
) -> Panel:
    """One figure, coloured by the highest of the ascending `steps` that it reaches."""
    options: Json = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
    }
    defaults: Json = {"thresholds": _steps(*(steps or ((None, "text"),)))}
    if decimals is not None:
        defaults["decimals"] = decimals
    return Panel(
        *("stat", title, description, (query,), unit, width, 4), options=options, defaults=defaults
    )


def bars(title: str, description: str, unit: str, *queries: Query, width: int = 8) -> Panel:
    """The latest value of each series as a bar, from 0 to 1."""
    options: Json = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "displayMode": "basic",
        "orientation": "horizontal",
        "showUnfilled": True,
    }
    return Panel(
        *("bargauge", title, description, queries, unit, width, 8),
        options=options,
        defaults={"min": 0, "max": 1, "decimals": 3},
    )


def table(
    title: str, description: str, unit: str, *queries: Query, transformations: Sequence[Json]
) -> Panel:
    """The latest values as rows and columns."""
    options: Json = {"showHeader": True, "cellHeight": "sm", "footer": {"show": False}}
    custom: Json = {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False}
    return Panel(
        *("table", title, description, queries, unit, 8, 8),
        custom=custom,
        options=options,
        defaults={"decimals": 0},
        transformations=transformations,
    )


def latest(expression: str) -> Query:
    """For a table: the values of now, with their labels."""
    return Query(expression, format="table", instant=True)


def dashboard(
    uid: str,
    title: str,
    description: str,
    variables: Sequence[Json],
    rows: Mapping[str, Sequence[Panel]],
) -> Json:
    """Rows of panels, each filled from the left, by the row's name."""
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["digits"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": list(variables)},
        "panels": _placed(rows),
    }


def datasource_variable() -> Json:
    """Which Prometheus is asked."""
    current = {"selected": True, "text": "Prometheus", "value": "digits-prometheus"}
    return {
        **{"name": "datasource", "label": "Prometheus", "type": "datasource"},
        **{"query": "prometheus", "current": current, "hide": 0, "refresh": 1},
    }


def label_variable(name: str, query: str) -> Json:
    """One or several of a label's values; all of them at first, also where there is none."""
    current = {"selected": True, "text": ["All"], "value": ["$__all"]}
    return {
        **{"name": name, "label": name, "type": "query", "datasource": DATASOURCE},
        **{"query": {"query": query, "refId": name}, "definition": query, "current": current},
        **{"includeAll": True, "allValue": ".*", "multi": True, "refresh": 2, "sort": 1, "hide": 0},
    }


def _placed(rows: Mapping[str, Sequence[Panel]]) -> list[Json]:
    placed: list[Json] = []
    y = 0
    for name, panels in rows.items():
        grid = {"h": 1, "w": WIDTH, "x": 0, "y": y}
        row = {"id": len(placed) + 1, "type": "row", "title": name, "collapsed": False}
        placed.append({**row, "gridPos": grid, "panels": []})
        y, x, height = y + 1, 0, 0
        for panel in panels:
            if x + panel.width > WIDTH:
                y, x, height = y + height, 0, 0
            grid = {"h": panel.height, "w": panel.width, "x": x, "y": y}
            placed.append({"id": len(placed) + 1, "gridPos": grid, **_panel(panel)})
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return placed


def _panel(panel: Panel) -> Json:
    defaults = {"unit": panel.unit, "custom": panel.custom, **panel.defaults}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "targets": [_target(number, query) for number, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": panel.options,
        "transformations": list(panel.transformations),
    }


def _target(number: int, query: Query) -> Json:
    return {
        "refId": chr(ord("A") + number),
        "datasource": DATASOURCE,
        "expr": query.expression,
        "legendFormat": query.legend or "__auto",
        "format": query.format,
        "instant": query.instant,
        "range": not query.instant,
        "editorMode": "code",
    }


def _steps(*steps: tuple[float | None, str]) -> Json:
    return {
        "mode": "absolute",
        "steps": [{"value": value, "color": color} for value, color in steps],
    }

"""/v1/overview: models, versions, and how they did over the last minutes; each one's report.

For the page's panel, and for whoever would rather have it as JSON.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from serving.classify import takes_digits
from serving.http import reports
from serving.http.history import AGES, INTERVAL, Figures, Version
from serving.http.services import Services
from serving.http.status import answering
from serving.registry import ServedModel, VersionState

# A report has its styles and images within, and nothing of it may run, ask or be framed.
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'; sandbox"
)
_FIGURES = tuple(field.name for field in dataclasses.fields(Figures))


def routes(services: Services) -> list[BaseRoute]:
    """The paths of this part."""

    async def overview(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(_overview, services))

    async def report(request: Request) -> Response:
        repository = services.config.model_repository
        page = await run_in_threadpool(reports.read, repository, **request.path_params)
        return HTMLResponse(page, headers={"Content-Security-Policy": REPORT_POLICY})

    return [
        Route("/v1/overview", answering(overview), methods=["GET"]),
        Route("/v1/models/{name}/versions/{version}/report", answering(report), methods=["GET"]),
    ]


def _overview(services: Services) -> dict[str, Any]:
    v2 = services.v2
    models = [_model(services, state) for state in v2.registry.index]
    served = [(each.manifest.name, each.version) for each in v2.registry.served]
    return {
        "server": {"name": "digits", "version": v2.version, "ready": v2.ready()},
        "models": sorted(models, key=_place),
        "history": {
            "interval_seconds": INTERVAL,
            "ages": AGES,
            "models": [_seen(*each) for each in services.history.seen(served).items()],
        },
    }


def _place(model: dict[str, Any]) -> tuple[object, ...]:
    """As classification has them: more classes first, then the more accurate, then by name."""
    return (
        not model["takes_digits"],
        -len(model["classes"]),
        -(model["accuracy"] or 0.0),
        model["name"],
        -int(model["version"]),
    )


def _model(services: Services, state: VersionState) -> dict[str, Any]:
    name, version = state.name, str(state.version)
    loaded = services.v2.registry.find(name, state.version)
    report = reports.exists(services.config.model_repository, name, state.version)
    return {
        "name": name,
        "version": version,
        "state": state.state,
        "reason": state.reason,
        **(_loaded(loaded) if loaded else _NOT_LOADED),
        "report": f"/v1/models/{name}/versions/{version}/report" if report else None,
    }


_NOT_LOADED = {
    "precision": "",
    "device": "",
    "accuracy": None,
    "classes": (),
    "takes_digits": False,
}


def _loaded(served: ServedModel) -> dict[str, Any]:
    """Of the variant that runs, where that was measured by itself."""
    manifest, variant = served.manifest, served.model.variant
    return {
        "precision": variant.precision,
        "device": served.model.device,
        "accuracy": manifest.accuracy if variant.accuracy is None else variant.accuracy,
        "classes": manifest.labels,
        "takes_digits": takes_digits(manifest),
    }


def _seen(version: Version, seen: list[Figures | None]) -> dict[str, Any]:
    """One list for each figure, by `AGES`."""
    lists = {name: [getattr(each, name) if each else None for each in seen] for name in _FIGURES}
    return {"model": version[0], "version": version[1], **lists}

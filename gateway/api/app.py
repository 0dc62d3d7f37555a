"""The two applications: one for the public port, one for the ops port."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.types import ASGIApp

from gateway.api.admin import AdminApi
from gateway.api.answers import EXCEPTION_HANDLERS
from gateway.api.auth import OpsGuard
from gateway.api.inference import InferenceApi


def public_app(inference: InferenceApi) -> ASGIApp:
    """Predictions, metadata, health and labels."""
    return Starlette(routes=inference.routes(), exception_handlers=EXCEPTION_HANDLERS)


def ops_app(admin: AdminApi, token: str | None, *, metrics_public: bool) -> ASGIApp:
    """Routes, verdicts and metrics, behind the guard."""
    app = Starlette(routes=admin.routes(), exception_handlers=EXCEPTION_HANDLERS)
    return OpsGuard(app, token, metrics_public=metrics_public)

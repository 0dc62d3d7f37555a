"""The two applications: one for the public port, one for the ops port."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from gateway.api.admin import AdminApi
from gateway.api.answers import EXCEPTION_HANDLERS
from gateway.api.auth import OpsGuard
from gateway.api.control import ControlApi
from gateway.api.documentation import DocumentationApi
from gateway.api.extensions import ExtensionsApi
from gateway.api.inference import InferenceApi
from gateway.api.v1 import V1Api


def public_app(
    inference: InferenceApi, extensions: ExtensionsApi, control: ControlApi, v1: V1Api, documentation: DocumentationApi
) -> ASGIApp:
    """Predictions, metadata, health, labels, Triton's extensions, and what there is of all that."""
    # First what would be taken for the name of a model.
    apis = (extensions, inference, control, v1, documentation)
    return _application([route for api in apis for route in api.routes()])


def ops_app(admin: AdminApi, control: ControlApi, token: str | None, *, metrics_public: bool) -> ASGIApp:
    """Routes, verdicts, metrics, and what is loaded, behind the guard."""
    return OpsGuard(_application([*admin.routes(), *control.routes()]), token, metrics_public=metrics_public)


def _application(routes: list[Route]) -> Starlette:
    app = Starlette(routes=routes, exception_handlers=EXCEPTION_HANDLERS)
    # A path with a slash too many is an unknown path, not a redirect that clients of the protocol do not follow.
    app.router.redirect_slashes = False
    return app

"""The applications: of the public port, of the ops port, and of the sockets between workers and their supervisor."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from gateway.api.admin import AdminApi
from gateway.api.answers import EXCEPTION_HANDLERS
from gateway.api.auth import OpsGuard
from gateway.api.control import ControlApi
from gateway.api.documentation import DocumentationApi
from gateway.api.extensions import ExtensionsApi
from gateway.api.inference import InferenceApi
from gateway.api.v1 import V1Api
from gateway.api.workers import SupervisorApi, UpwardApi, WorkerApi
from gateway.state.worker import PRIVATE


def public_app(
    inference: InferenceApi,
    extensions: ExtensionsApi,
    control: ControlApi,
    v1: V1Api,
    documentation: DocumentationApi,
    upward: UpwardApi | None = None,
) -> ASGIApp:
    """Predictions, metadata, health, labels, Triton's extensions, and what there is of all that."""
    # First what would be taken for the name of a model.
    apis = (*((upward,) if upward is not None else ()), extensions, inference, control, v1, documentation)
    return _application([route for api in apis for route in api.routes()])


def ops_app(admin: AdminApi, control: ControlApi, token: str | None, *, metrics_public: bool) -> ASGIApp:
    """Routes, verdicts, metrics, and what is loaded, behind the guard."""
    return OpsGuard(_application([*admin.routes(), *control.routes()]), token, metrics_public=metrics_public)


def worker_app(admin: AdminApi, control: ControlApi, extensions: ExtensionsApi, worker: WorkerApi) -> ASGIApp:
    """A worker's side of the ops port, for its supervisor."""
    private: list[Route] = [*worker.routes(), *extensions.statistics_routes()]
    app = _application([Mount(PRIVATE, routes=private), *admin.routes(), *control.routes()])
    return ProxyHeadersMiddleware(app, trusted_hosts="*")  # type: ignore[arg-type, return-value]


def supervisor_ops_app(supervisor: SupervisorApi, token: str | None, *, metrics_public: bool) -> ASGIApp:
    """The ops port of several workers, behind the guard."""
    return OpsGuard(_application(supervisor.ops_routes()), token, metrics_public=metrics_public)


def supervisor_app(supervisor: SupervisorApi) -> ASGIApp:
    """What the workers ask of the supervisor."""
    return ProxyHeadersMiddleware(_application(supervisor.private_routes()), trusted_hosts="*")  # type: ignore[arg-type, return-value]


def _application(routes: Sequence[BaseRoute]) -> Starlette:
    app = Starlette(routes=routes, exception_handlers=EXCEPTION_HANDLERS)
    # A path with a slash too many is an unknown path, not a redirect that clients of the protocol do not follow.
    app.router.redirect_slashes = False
    return app

"""The children of `gateway serve`: the embedded store and the collector, unless others do that, and the engine."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from gateway.engine_process import EngineProcess
from gateway.errors import StartupError
from gateway.settings import ENGINE_OPTIONS, ENV_PREFIX, Settings
from gateway.state.embedded import EmbeddedStore
from gateway.state.process import ChildProcess

MAX_CONSUMER_NAME = 128


@contextmanager
def running_children(settings: Settings) -> Iterator[tuple[str, list[ChildProcess]]]:
    """URL of the store, and those who were started; they are stopped at the end, in the opposite order."""
    redis_url, children = _children(settings)
    with ExitStack() as stack:
        for child in children:
            stack.callback(child.stop)
            child.start()
        yield redis_url, children


def child_environment(options: Mapping[str, str]) -> dict[str, str]:
    """Our environment, with `options` for the only settings.

    A command line, where everybody can read it, is no place for the store's password.
    """
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith(ENV_PREFIX)}
    return environment | {ENV_PREFIX + name.upper(): value for name, value in options.items()}


def _children(settings: Settings) -> tuple[str, list[ChildProcess]]:
    children: list[ChildProcess] = []
    redis_url = settings.redis_url
    if redis_url is None:
        embedded = EmbeddedStore(settings.data_dir)
        redis_url = embedded.url
        children.append(embedded)
    if settings.collector:
        children.append(_collector(settings, redis_url))
    if settings.engine == "process":
        options = {name: value for name, value in settings.as_options().items() if name in ENGINE_OPTIONS}
        children.append(EngineProcess(settings.data_dir, child_environment(options)))
    return redis_url, children


def _collector(settings: Settings, redis_url: str) -> ChildProcess:
    """`gateway collect` as a child, so that its work never delays a prediction."""
    if importlib.util.find_spec("datasketches") is None:
        raise StartupError(
            "the collector's libraries are missing: `pip install 'model-gateway[collector]'`, or start with "
            "--no-collector and run `gateway collect` elsewhere"
        )
    # The data directory is ours alone, so a child that is started again after a crash can go by the same name.
    name = settings.consumer_name or f"{socket.gethostname()}:{settings.data_dir.resolve()}"[-MAX_CONSUMER_NAME:]
    options = {
        "models": str(settings.models),
        "redis_url": redis_url,
        "consumer_name": name,
        "log_level": settings.log_level,
        "log_format": settings.log_format,
    }
    return ChildProcess("collector", [sys.executable, "-m", "gateway", "collect"], child_environment(options))

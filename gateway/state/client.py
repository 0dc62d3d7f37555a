"""One way to reach Redis, and one way in which its failures appear above this layer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias
from urllib.parse import urlsplit, urlunsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway.errors import StartupError, StoreUnavailable

Store: TypeAlias = Redis

CONNECT_TIMEOUT_SECONDS = 1.0
COMMAND_TIMEOUT_SECONDS = 5.0


def connect(url: str) -> Store:
    """A client with bounded waits; it connects on first use and again after a failure."""
    try:
        return Redis.from_url(
            url,
            socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
            socket_timeout=COMMAND_TIMEOUT_SECONDS,
            # A command that timed out may have run. Whoever sent it decides whether to send it again.
            retry=Retry(NoBackoff(), 0),
            health_check_interval=15,
        )
    except ValueError as error:
        raise StartupError(f"redis-url {redact(url)!r}: {error}") from error


@contextmanager
def store_errors() -> Iterator[None]:
    """Translate redis-py's errors into `StoreUnavailable`."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise StoreUnavailable(
            f"the store does not answer: {type(error).__name__}: {error}", retry_after=1.0
        ) from error


def redact(url: str) -> str:
    """The URL without its password, for logs and messages."""
    parts = urlsplit(url)
    if parts.password is not None:
        host = parts.netloc.rpartition("@")[2]
        parts = parts._replace(netloc=f"{parts.username or ''}:***@{host}")
        url = urlunsplit(parts)
    # redis-py also takes it as a parameter, which is the only way for Unix sockets.
    return re.sub(r"([?&]password=)[^&]*", r"\1***", url)

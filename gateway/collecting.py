"""`gateway collect`: one collector until SIGINT or SIGTERM."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from pathlib import Path

from gateway.collector.worker import run
from gateway.lifecycle import stop_signals
from gateway.state.client import connect, redact

logger = logging.getLogger(__name__)


async def collect(redis_url: str, models: Path, consumer: str | None) -> None:
    """Join the consumer group as `consumer`, or under a name that no other collector has."""
    stop = stop_signals()
    consumer = consumer or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    store = connect(redis_url)
    logger.info("collecting from %s as %s", redact(redis_url), consumer)
    try:
        await run(store, models, consumer, stop)
    finally:
        await store.aclose()

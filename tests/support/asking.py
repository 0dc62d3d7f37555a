"""Both clients through one door, so that each test is of the two."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

from gateway.client import AsyncClient, Client

Ask: TypeAlias = Callable[..., Any]
"""`ask(url, action, **options)`: what `action` gets from a client with these options."""


def ask_sync(url: str, action: Callable[[Any], Any], **options: Any) -> Any:
    """With a `Client`."""
    with Client(url, **options) as client:
        return action(client)


def ask_async(url: str, action: Callable[[Any], Any], **options: Any) -> Any:
    """With an `AsyncClient`."""

    async def scenario() -> Any:
        async with AsyncClient(url, **options) as client:
            return await action(client)

    return asyncio.run(scenario())

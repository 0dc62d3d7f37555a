"""The key that signs prediction ids: one for all gateways of a store, so that any of them can check a label."""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path

from gateway.errors import StoreUnavailable
from gateway.state import keys
from gateway.state.client import Store, store_errors

logger = logging.getLogger(__name__)

KEY_BYTES = 32


async def shared_id_key(store: Store, path: Path) -> bytes:
    """The store's key, made on first use; `path` keeps a copy for a start while the store is down."""
    known = _load(path)
    candidate = known or secrets.token_bytes(KEY_BYTES)
    try:
        with store_errors():
            await store.set(keys.ID_KEY, candidate, nx=True)
            stored = await store.get(keys.ID_KEY)
        key = stored if isinstance(stored, bytes) else candidate
    except StoreUnavailable as error:
        if known is None:
            logger.warning("%s; ids issued now cannot be labelled at other gateways", error)
        key = candidate
    if key != known:
        _save(path, key)
    return key


def _load(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _save(path: Path, key: bytes) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)
    temporary.replace(path)

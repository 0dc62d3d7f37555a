"""Unix sockets of our own: where they can be, and that nobody else gets at them."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from gateway.errors import StartupError

SOCKET_PATH_LIMIT = 100
"""Unix socket paths are limited to 108 bytes on Linux and 104 on macOS."""


def socket_path(wanted: Path) -> Path:
    """`wanted`, or a path that stands for it where that is too long for a socket."""
    if len(str(wanted)) <= SOCKET_PATH_LIMIT:
        return wanted
    digest = hashlib.sha256(str(wanted.parent).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"gateway-{digest}" / wanted.name


def make_private(folder: Path) -> None:
    """Make the folder, or check that one which is there is ours alone. Raises `StartupError`."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise StartupError(f"{folder}: others can reach into this folder; remove it, or `chmod 700` it if it is yours")

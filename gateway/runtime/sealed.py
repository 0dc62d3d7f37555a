"""Copies of files in memory that nobody can change: what was hashed is what is used.

A path can name another file a moment later, and even an open file can be written to. ONNX Runtime takes bytes as well,
but holds the interpreter's lock while it parses them: measured, 3 ms for each MB in which no request is answered. A
sealed file has a path, which it reads without the lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import weakref
from functools import cached_property
from pathlib import Path

CHUNK_BYTES = 2**20
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class SealedFile:
    """A file as it was when it was read (memfd_create(2)), until nobody refers to it any more."""

    def __init__(self, source: Path) -> None:
        """Raises `OSError` if `source` cannot be read, or does not fit into memory."""
        self._descriptor = os.memfd_create(source.name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, self._descriptor)
        self.size = 0
        digest = hashlib.sha256()
        with source.open("rb") as file, open(self._descriptor, "wb", closefd=False) as copy:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                self.size += copy.write(chunk)
        fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, SEALS)
        self.sha256 = digest.hexdigest()

    @cached_property
    def buffer(self) -> mmap.mmap | bytes:
        """Its bytes, not copied; they stay where they are as long as this lives."""
        return mmap.mmap(self._descriptor, self.size, prot=mmap.PROT_READ) if self.size else b""

    @property
    def path(self) -> Path:
        """Under which this process may open it."""
        return Path(f"/proc/self/fd/{self._descriptor}")

"""Memory that a model took goes back to the system when the model does."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Return freed memory to the system; glibc keeps most of it for itself otherwise (malloc_trim(3)).

    Takes some milliseconds without the interpreter's lock. Nothing is done under another C library.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

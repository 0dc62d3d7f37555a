"""What the loaded versions hold of the machine's memory, and whether another one finds room.

The rule of this file: a version that does not fit is refused before it is read, since the kernel, asked for more than
there is, ends the whole process. What it will need is predicted from the size of its files; what it holds is measured
when it is warm.
"""

from __future__ import annotations

import ctypes
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.errors import NotEnoughMemory
from gateway.types import ModelKey

LOADING_FACTOR = 4
"""How many times its size a model needs while it loads, at most: its files, the parsed model and the session made of
them, and the second session that is tried where the model is slow. Warm, it holds its size once."""
MEBIBYTE = 2**20

CGROUP = re.compile(r"^\d+:(?P<controllers>[^:]*):(?P<path>/.*)$", re.MULTILINE)
CGROUP_FILES = {
    "": ("", "memory.max", "memory.current", ""),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}
"""By controller in `/proc/self/cgroup`, of cgroup v2 and v1: folder below the mount, files with limit and use, and what
stands before the names in `memory.stat`."""


class ModelMemory:
    """The memory of each loaded version, in bytes, and its limit."""

    def __init__(self, limit: int = 0, root: Path = Path("/")) -> None:
        """`limit` is for all versions together, 0 for none but that of the process's cgroup below `root`."""
        self._limit = limit
        self._root = root
        self.held: dict[ModelKey, int] = {}

    @contextmanager
    def loading(self, key: ModelKey, file_bytes: int) -> Iterator[None]:
        """Measure what is loaded inside; nothing else is to be loaded meanwhile.

        The measure is the growth of the process, at least `file_bytes`; requests that are served meanwhile blur it.
        Raises `NotEnoughMemory` before, if there is not enough room to load it, or after, if it holds more than that.
        """
        self._check(LOADING_FACTOR * file_bytes, "may need, while it loads,")
        self._check_cgroup(LOADING_FACTOR * file_bytes)
        give_back()
        before = resident_bytes()
        yield
        give_back()
        held = max(resident_bytes() - before, file_bytes)
        self._check(held, "holds")
        self.held[key] = held

    def release(self, key: ModelKey) -> None:
        """The version is gone."""
        self.held.pop(key, None)

    def _check(self, need: int, verb: str) -> None:
        held = sum(self.held.values())
        if self._limit and held + need > self._limit:
            raise NotEnoughMemory(
                f"the model {verb} {_mib(need)}, and the loaded ones hold {_mib(held)} of the {_mib(self._limit)} that "
                "model_memory_bytes allows: unload another, or raise the limit"
            )

    def _check_cgroup(self, need: int) -> None:
        free = cgroup_free_bytes(self._root)
        if free is not None and need > free:
            raise NotEnoughMemory(
                f"the model may need, while it loads, {_mib(need)}, and the container's memory limit leaves "
                f"{_mib(free)}: unload another, or raise that limit"
            )


def resident_bytes() -> int:
    """What this process holds of the machine's memory."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()


def give_back() -> None:
    """Return freed memory to the system; glibc keeps most of it for itself otherwise (malloc_trim(3)).

    Takes some milliseconds without the interpreter's lock. Nothing is done under another C library.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def cgroup_free_bytes(root: Path = Path("/")) -> int | None:
    """What the memory limits of the process's cgroup, and of those around it, leave; None without a limit.

    The page cache counts as free, as the kernel drops it before it ends anybody.
    """
    try:
        groups = CGROUP.findall((root / "proc/self/cgroup").read_text("utf-8"))
    except OSError:
        return None
    free = []
    for controllers, path in groups:
        if controllers not in CGROUP_FILES:
            continue
        below, limit_file, use_file, prefix = CGROUP_FILES[controllers]
        mount = root / "sys/fs/cgroup" / below
        # In a container the path is that of the host, and the mount is the cgroup itself.
        folder = mount / path.lstrip("/")
        for group in (folder, *folder.parents):
            if group.is_relative_to(mount):
                free += _free_in(group, limit_file, use_file, prefix)
    return min(free, default=None)


def _free_in(group: Path, limit_file: str, use_file: str, prefix: str) -> list[int]:
    try:
        limit = (group / limit_file).read_text("ascii").strip()
        use = int((group / use_file).read_text("ascii"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text("ascii").splitlines())
    except OSError:
        return []
    cache = sum(int(stat.get(f"{prefix}{state}_file", 0)) for state in ("active", "inactive"))
    return [] if limit == "max" else [max(0, int(limit) - use + cache)]


def _mib(size: int) -> str:
    return f"{size / MEBIBYTE:.1f} MiB"

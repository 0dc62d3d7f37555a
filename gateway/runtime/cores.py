"""How many cores this process may use: those of the machine, less what affinity and the cgroup's quota take away.

`os.cpu_count` says what the machine has. In a container with a quota of two cores on a machine of 64, that many
threads would use up the quota in a thirtieth of each period, and the kernel would stop all of them for the rest of it
(Linux, Documentation/scheduler/sched-bwc.rst).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

CGROUPS = Path("sys/fs/cgroup")
MEMBERSHIP = Path("proc/self/cgroup")
UNLIMITED = "max"


def usable_cores(root: Path = Path("/")) -> int:
    """At least 1. A quota of parts of a core is rounded down: the event loop's thread needs the rest.

    `root` is where `/proc` and `/sys` are found.
    """
    return max(1, math.floor(min(len(os.sched_getaffinity(0)), cgroup_quota(root))))


def cgroup_quota(root: Path = Path("/")) -> float:
    """Cores that the process's cgroup and those above it allow, version 1 or 2; infinite without a limit."""
    try:
        memberships = (root / MEMBERSHIP).read_text("utf-8").splitlines()
    except OSError:
        return math.inf
    return min((quota for line in memberships for quota in _quotas(root / CGROUPS, line)), default=math.inf)


def _quotas(mount: Path, membership: str) -> Iterator[float]:
    """Of one line of `/proc/self/cgroup`, `hierarchy:controllers:path` (cgroups(7))."""
    hierarchy, controllers, path = membership.split(":", 2)
    if hierarchy == "0":
        for folder in _folders(mount, path):
            with suppress(OSError, ValueError):
                quota, period = (folder / "cpu.max").read_text("ascii").split()
                yield math.inf if quota == UNLIMITED else int(quota) / int(period)
    elif "cpu" in controllers.split(","):
        for folder in (*_folders(mount / controllers, path), *_folders(mount / "cpu", path)):
            with suppress(OSError, ValueError):
                micros = int((folder / "cpu.cfs_quota_us").read_text("ascii"))
                # -1 is no limit.
                yield micros / int((folder / "cpu.cfs_period_us").read_text("ascii")) if micros > 0 else math.inf


def _folders(mount: Path, path: str) -> list[Path]:
    """The cgroup and all above it, whose limits hold as well.

    In a container the path may be the host's, of which only the mount itself is to be seen.
    """
    inside = PurePosixPath(path).relative_to("/")
    return [mount / folder for folder in (inside, *inside.parents)]

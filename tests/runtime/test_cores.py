"""Files as the kernel writes them, under a root of our own."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.runtime.cores import cgroup_quota, usable_cores

V1_CPU = "sys/fs/cgroup/cpu"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n", "ascii")
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, math.inf),
        ({"proc/self/cgroup": "0::/"}, math.inf),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, math.inf),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        # The smallest of those above each other holds.
        (
            {
                "proc/self/cgroup": "0::/pods/a",
                "sys/fs/cgroup/pods/cpu.max": "50000 100000",
                "sys/fs/cgroup/pods/a/cpu.max": "400000 100000",
            },
            0.5,
        ),
        # A container that sees the host's path, and only its own cgroup under the mount.
        ({"proc/self/cgroup": "0::/docker/f00", "sys/fs/cgroup/cpu.max": "300000 100000"}, 3.0),
        (
            {
                "proc/self/cgroup": "4:memory:/\n1:cpu:/",
                f"{V1_CPU}/cpu.cfs_quota_us": "250000",
                f"{V1_CPU}/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/",
                f"{V1_CPU}/cpu.cfs_quota_us": "-1",
                f"{V1_CPU}/cpu.cfs_period_us": "100000",
            },
            math.inf,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/pods/a\n0::/",
                "sys/fs/cgroup/cpu,cpuacct/pods/a/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu,cpuacct/pods/a/cpu.cfs_period_us": "50000",
            },
            2.0,
        ),
        # `cpuset` is no quota, and what cannot be read is none either.
        ({"proc/self/cgroup": "3:cpuset:/\n0::/", "sys/fs/cgroup/cpu.max": "what is this"}, math.inf),
    ],
)
def test_the_quota_is_the_least_that_holds(tmp_path: Path, files: dict[str, str], quota: float) -> None:
    assert cgroup_quota(write(tmp_path, files)) == quota


@pytest.mark.parametrize(("micros", "cores"), [(30_000, 1), (100_000, 1), (199_000, 1)])
def test_parts_of_a_core_are_left_to_the_loop_but_one_core_is_always_there(
    tmp_path: Path, micros: int, cores: int
) -> None:
    root = write(tmp_path, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": f"{micros} 100000"})
    assert usable_cores(root) == cores


def test_affinity_counts(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == len(os.sched_getaffinity(0))
    one = min(os.sched_getaffinity(0))
    count = f"import os; os.sched_setaffinity(0, [{one}]); from gateway.runtime.cores import *; print(usable_cores())"
    done = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"

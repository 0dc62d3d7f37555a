"""CPU time and memory of a server from /proc: of the process itself, and of it with all that it started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
PROC = Path("/proc")


class ProcessStat(NamedTuple):
    """One line of /proc/<pid>/stat; see proc(5)."""

    pid: int
    parent: int
    session: int
    cpu_seconds: float
    """User and system time of the process."""
    reaped_seconds: float
    """The same of its children that have ended and were waited for: with it, a sum over a tree never goes back."""
    started: int
    """In clock ticks since the machine started: with the process id it names a process for good."""
    rss_bytes: int


class Usage(NamedTuple):
    """A server at one moment."""

    own_seconds: float
    """CPU time of the process that was started, alone."""
    tree_seconds: float
    """CPU time of it, its descendants and whatever else lives in its session."""
    own_rss_bytes: int
    tree_rss_bytes: int


def parse_stat(line: str) -> ProcessStat:
    """The name, in parentheses, may hold spaces and parentheses itself; fields are counted from behind it."""
    pid = int(line.split(" ", 1)[0])
    fields = line[line.rindex(")") + 2 :].split()
    user, system, reaped_user, reaped_system = (int(value) * TICK_SECONDS for value in fields[11:15])
    return ProcessStat(
        pid=pid,
        parent=int(fields[1]),
        session=int(fields[3]),
        cpu_seconds=user + system,
        reaped_seconds=reaped_user + reaped_system,
        started=int(fields[19]),
        rss_bytes=int(fields[21]) * PAGE_BYTES,
    )


def tree(root: int, processes: list[ProcessStat]) -> list[ProcessStat]:
    """`root`, its descendants, and the members of its session, which stay in it when their parent ends."""
    members = {root}
    is_growing = True
    while is_growing:
        found = {one.pid for one in processes if one.parent in members or one.session == root}
        is_growing = not found <= members
        members |= found
    return [one for one in processes if one.pid in members]


def processes() -> list[ProcessStat]:
    """Everything that runs now."""
    found = []
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            try:
                found.append(parse_stat((folder / "stat").read_text("utf-8", "replace")))
            except (FileNotFoundError, ProcessLookupError):
                continue  # It ended while we looked.
    return found


def usage(root: int) -> Usage:
    """What the server with process id `root` has used so far. Raises `ProcessLookupError` if it has ended."""
    members = tree(root, processes())
    own = next((one for one in members if one.pid == root), None)
    if own is None:
        raise ProcessLookupError(f"process {root} has ended")
    return Usage(
        own.cpu_seconds,
        sum(one.cpu_seconds + one.reaped_seconds for one in members),
        own.rss_bytes,
        sum(one.rss_bytes for one in members),
    )

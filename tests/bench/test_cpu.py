from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from bench.cpu import ProcessStat, parse_stat, tree, usage
from bench.process import still_running

BUSY_PARENT_OF_BUSY_CHILD = """
import subprocess, sys, time
busy = "import time\\nwhile time.process_time() < 0.25: pass\\n"
child = subprocess.Popen([sys.executable, "-c", busy + "print('busy', flush=True); time.sleep(60)"])
exec(busy)
child.wait()
"""


def _process(pid: int, parent: int, session: int = 1, started: int = 0) -> ProcessStat:
    return ProcessStat(pid, parent, session, 0.0, 0.0, started, 0)


def test_name_may_hold_anything() -> None:
    line = "42 (a) (b) S 7 42 9 0 -1 4194304 1 2 3 4 150 50 30 20 20 0 3 0 777 1000 25 18446744073709551615"

    stat = parse_stat(line)

    tick = 1 / os.sysconf("SC_CLK_TCK")
    assert (stat.pid, stat.parent, stat.session, stat.started) == (42, 7, 9, 777)
    assert stat.cpu_seconds == pytest.approx(200 * tick)
    assert stat.reaped_seconds == pytest.approx(50 * tick)
    assert stat.rss_bytes == 25 * os.sysconf("SC_PAGE_SIZE")


def test_tree_holds_descendants_and_what_stayed_in_the_session() -> None:
    listed = [
        _process(10, 1, 10),
        _process(13, 12, 13),  # a grandchild that left the session, listed before its parent
        _process(12, 10, 10),
        _process(20, 1, 10),  # its parent has ended
        _process(21, 20, 21),
        _process(99, 1, 99),
    ]

    assert {one.pid for one in tree(10, listed)} == {10, 12, 13, 20, 21}


def test_leftovers_are_told_from_processes_that_took_over_their_ids() -> None:
    before = [_process(10, 1, 10, 5), _process(11, 10, 11, 6), _process(12, 10, 12, 7)]
    now = [_process(11, 1, 11, 6), _process(12, 1, 12, 999), _process(14, 1, 10, 8)]

    assert {one.pid for one in still_running(before, now, 10)} == {11, 14}


def test_counts_a_child_and_its_child() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BUSY_PARENT_OF_BUSY_CHILD], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"busy\n"
            while usage(process.pid).own_seconds < 0.2:
                time.sleep(0.01)
            used = usage(process.pid)
        finally:
            os.killpg(process.pid, 9)

    assert used.tree_seconds >= used.own_seconds + 0.2
    assert used.tree_rss_bytes > used.own_rss_bytes > 0


def test_a_process_that_has_ended_is_an_error() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()

    with pytest.raises(ProcessLookupError):
        usage(process.pid)

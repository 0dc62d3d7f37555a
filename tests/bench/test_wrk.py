from __future__ import annotations

import pytest

from bench import wrk

OUTPUT = """\
Running 5s test @ http://127.0.0.1:9000/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.99ms    1.10ms   9.63ms   91.11%
  115781 requests in 4.02s, 12.04MB read
  Non-2xx or 3xx responses: 7
Requests/sec:  28832.04
wrk-result {"requests":115781,"microseconds":4015700,"refused":7,"lost":1,\
"p50_us":1990.0,"p90_us":3000.0,"p99_us":6340.5,"p999_us":9001.0}
"""


def test_reads_the_line_that_the_script_prints() -> None:
    result = wrk.parse(OUTPUT)

    assert (result.requests, result.refused, result.lost) == (115_781, 7, 1)
    assert result.seconds == pytest.approx(4.0157)
    assert (result.p50_us, result.p99_us) == (1990.0, 6340.5)


def test_shows_what_wrk_said_if_it_has_no_result() -> None:
    with pytest.raises(ValueError, match="unable to connect"):
        wrk.parse("unable to connect to 127.0.0.1:1 Connection refused")


def test_script_quotes_what_it_sends() -> None:
    script = wrk.script('a"b.body', {"Content-Type": "application/json"})

    assert 'io.open("a\\"b.body", "rb")' in script
    assert 'wrk.headers["Content-Type"] = "application/json"' in script


def test_command_has_one_thread_and_whole_seconds() -> None:
    assert wrk.command("http://h/", 64, 0.4, "s.lua")[:4] == ["wrk", "-t1", "-c64", "-d1s"]

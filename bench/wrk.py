"""Closed loop: `wrk`, one thread, each connection sends its next request when it has the answer to the last."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import NamedTuple

import orjson

MARK = "wrk-result "
SCRIPT = """\
local file = io.open({body}, "rb")
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
{headers}
done = function(summary, latency, requests)
  local errors = summary.errors
  local lost = errors.connect + errors.read + errors.write + errors.timeout
  print(string.format('{mark}{{"requests":%d,"microseconds":%d,"refused":%d,"lost":%d,' ..
    '"p50_us":%.1f,"p90_us":%.1f,"p99_us":%.1f,"p999_us":%.1f}}',
    summary.requests, summary.duration, errors.status, lost, latency:percentile(50), latency:percentile(90),
    latency:percentile(99), latency:percentile(99.9)))
end
"""


class WrkMissing(Exception):
    """The load generator is not installed."""


class ClosedResult(NamedTuple):
    """What wrk saw. Latencies are from a request's sending, so a stall shows once for each connection, not longer."""

    requests: int
    seconds: float
    refused: int
    """Answers with a status from 400 on."""
    lost: int
    """Requests without an answer."""
    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float


def version() -> str:
    """Raises `WrkMissing`, saying how to install it."""
    if shutil.which("wrk") is None:
        raise WrkMissing("wrk is not installed: `apt-get install wrk` (Debian, Ubuntu), `brew install wrk` (macOS)")
    # `wrk --version` prints its usage too and ends with 1.
    output = subprocess.run(["wrk", "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"wrk\s+(\S+)", output)
    return match[1] if match else "unknown"


def script(body: str, headers: dict[str, str]) -> str:
    """The Lua script that sends `body`; it prints its result as one line of JSON, in microseconds."""
    lines = "\n".join(f"wrk.headers[{_lua(name)}] = {_lua(value)}" for name, value in headers.items())
    return SCRIPT.format(body=_lua(body), headers=lines, mark=MARK)


def command(url: str, connections: int, seconds: float, script_file: str) -> list[str]:
    """One thread: it and the server share the machine."""
    options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s", "-s", script_file]
    return ["wrk", *options, url]


def parse(output: str) -> ClosedResult:
    """The line that the script printed. Raises `ValueError` with the output if there is none."""
    line = next((line for line in output.splitlines() if line.startswith(MARK)), None)
    if line is None:
        raise ValueError(f"wrk printed no result:\n{output}")
    fields = orjson.loads(line.removeprefix(MARK))
    return ClosedResult(seconds=fields.pop("microseconds") / 1e6, **fields)


def run(url: str, connections: int, seconds: float, script_file: str) -> ClosedResult:
    """Send for `seconds` and wait for the result."""
    finished = subprocess.run(
        command(url, connections, seconds, script_file),
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 60,
    )
    return parse(finished.stdout + finished.stderr)


def _lua(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

"""What the parts cost without any server, in a process of their own: decoding or copying a body, running a model.

`python -m bench.inprocess decode BODY`, `... copy BODY` and `... run MODEL` print one line of JSON.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import orjson

from bench import model

COPIES = 129
"""Of a body of 600 kB they are more than a cache of 64 MB; an odd number, so that the pairs differ each time around."""


def measure(operation: Callable[[], object], seconds: float) -> dict[str, float]:
    """Repeat `operation` for `seconds`; time it once in a warm-up first."""
    operation()
    durations = []
    cpu, start = time.process_time(), time.perf_counter()
    while (before := time.perf_counter()) - start < seconds:
        operation()
        durations.append(time.perf_counter() - before)
    elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "operations": len(durations),
        "seconds": elapsed,
        "cpu_us": cpu / len(durations) * 1e6,
        "p50_us": statistics.median(durations) * 1e6,
    }


def decode(body: Path, seconds: float) -> dict[str, float]:
    """`orjson.loads` + `np.array`, as every Python server without a decoder of its own does it."""
    content = body.read_bytes()
    return measure(lambda: np.array(orjson.loads(content)["inputs"][0]["data"], np.float32), seconds)


def copy(body: Path, seconds: float) -> dict[str, float]:
    """One copy of a body into other memory. Sources and targets take turns, so that none of them is in a cache."""
    content = np.frombuffer(body.read_bytes(), np.uint8)
    buffers = itertools.cycle([content.copy() for _ in range(COPIES)])
    return measure(lambda: np.copyto(next(buffers), next(buffers)), seconds)


def run(name: str, batch: int, threads: int, seconds: float, *, may_spin: bool) -> dict[str, float]:
    """Bare `session.run` on `batch` rows."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if may_spin else "0")
    session = onnxruntime.InferenceSession(str(model.model_file(name)), options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: model.rows(name, batch)}
    result = measure(lambda: session.run(None, inputs), seconds)
    return result | {"batch": batch, "rows_per_second": batch * result["operations"] / result["seconds"]}


def main() -> None:
    """Print the result as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.inprocess")
    parser.add_argument("part", choices=("decode", "copy", "run"))
    parser.add_argument("what", help="A body's file, or a model's name.")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--spin", action="store_true", help="Let ONNX Runtime's threads spin between runs.")
    options = parser.parse_args()
    if options.part == "decode":
        result = decode(Path(options.what), options.seconds)
    elif options.part == "copy":
        result = copy(Path(options.what), options.seconds)
    else:
        result = run(options.what, options.batch, options.threads, options.seconds, may_spin=options.spin)
    print(orjson.dumps(result).decode())


if __name__ == "__main__":
    main()

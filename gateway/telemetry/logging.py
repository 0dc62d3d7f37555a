"""Log records as text for a terminal, or one JSON object a line for a log store."""

from __future__ import annotations

import logging
import sys
import time
from typing import Literal

import orjson


class JsonFormatter(logging.Formatter):
    """time (RFC 3339, UTC), level, logger, message, which worker it was and, for exceptions, the traceback."""

    def __init__(self, worker: int | None) -> None:
        super().__init__()
        self._worker = {} if worker is None else {"worker": worker}

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        document = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._worker,
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(document).decode()


def configure(level: str, log_format: Literal["text", "json"], worker: int | None = None) -> None:
    """Send every record of this process to standard error; `worker` is its number where there are several."""
    handler = logging.StreamHandler(sys.stderr)
    who = "" if worker is None else f"worker {worker} "
    text = logging.Formatter(f"%(asctime)s %(levelname)-7s {who}%(name)s: %(message)s", "%H:%M:%S")
    handler.setFormatter(JsonFormatter(worker) if log_format == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Uvicorn tells of every start and stop at `info`; the gateway says the same in its own words.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # These tell of each request that a supervisor and its workers exchange.
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)

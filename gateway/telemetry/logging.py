"""Log records as text for a terminal, or one JSON object a line for a log store."""

from __future__ import annotations

import logging
import sys
import time
from typing import Literal

import orjson


class JsonFormatter(logging.Formatter):
    """time (RFC 3339, UTC), level, logger, message and, for exceptions, the traceback."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        document = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(document).decode()


def configure(level: str, log_format: Literal["text", "json"]) -> None:
    """Send every record of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")
    handler.setFormatter(JsonFormatter() if log_format == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Uvicorn tells of every start and stop at `info`; the gateway says the same in its own words.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)

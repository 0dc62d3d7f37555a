"""The log's level in the words of Triton's "Logging Extension", read and changed while the gateway runs.

Triton switches each level on its own. Python's levels contain each other, so only a combination that is one of them can
take effect; any other is refused. File and format are fixed at the start.
"""

from __future__ import annotations

import logging
from typing import Any

from gateway.errors import InvalidRequest, shown
from gateway.types import JsonObject

logger = logging.getLogger(__name__)

PACKAGE = "gateway"
SWITCHES = {"log_info": logging.INFO, "log_warning": logging.WARNING, "log_error": logging.ERROR}
VERBOSE = "log_verbose_level"


class LogSettings:
    """The level of this package's log records."""

    def __init__(self, log_format: str) -> None:
        self._fixed = {"log_file": "", "log_format": log_format}
        self._logger = logging.getLogger(PACKAGE)

    def document(self) -> JsonObject:
        """As `GET v2/logging` shows it; an empty file name is standard error."""
        switches = {name: self._logger.isEnabledFor(level) for name, level in SWITCHES.items()}
        return {**self._fixed, **switches, VERBOSE: int(self._logger.isEnabledFor(logging.DEBUG))}

    def change(self, changes: JsonObject) -> JsonObject:
        """Put the settings that are named in force; all of them, as `document` shows them afterwards.

        Raises `InvalidRequest` for what cannot take effect; nothing is changed then.
        """
        wanted = self.document()
        for name, value in changes.items():
            if name not in wanted:
                raise InvalidRequest(f"{shown(name)[1:-1]}: unknown; settings: {', '.join(wanted)}")
            if name in self._fixed and value != wanted[name]:
                raise InvalidRequest(f"{name}: is set when the gateway starts and cannot be changed while it runs")
            wanted[name] = _checked(name, value)
        level = _level(wanted)
        before = self._logger.getEffectiveLevel()
        if level != before:
            # Told at whichever of the two levels says more.
            self._logger.setLevel(min(level, before))
            logger.warning("the log's level is changed to %s", logging.getLevelName(level))
            self._logger.setLevel(level)
        return self.document()


def _checked(name: str, value: Any) -> Any:
    if name in SWITCHES and not isinstance(value, bool):
        raise InvalidRequest(f"{name}: expected true or false, got {shown(value)}")
    if name == VERBOSE and (type(value) is not int or value not in {0, 1}):
        raise InvalidRequest(f"{name}: expected 0 or 1, there is one level of detail; got {shown(value)}")
    return value


def _level(wanted: JsonObject) -> int:
    """The level that enables exactly what is wanted."""
    enabled = [bool(wanted[VERBOSE]), *(wanted[name] for name in SWITCHES)]
    if enabled != sorted(enabled):
        names = ", ".join([VERBOSE, *SWITCHES])
        raise InvalidRequest(f"a level that is on needs the more severe ones on too; from detail to severe: {names}")
    levels = [logging.DEBUG, *SWITCHES.values(), logging.CRITICAL]
    return levels[enabled.index(True) if True in enabled else len(enabled)]

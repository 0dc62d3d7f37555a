from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.errors import InvalidRequest
from gateway.telemetry.log_settings import PACKAGE, LogSettings

SHOWN = {
    logging.DEBUG: (1, True, True, True),
    logging.INFO: (0, True, True, True),
    logging.WARNING: (0, False, True, True),
    logging.ERROR: (0, False, False, True),
    logging.CRITICAL: (0, False, False, False),
}
NAMES = ("log_verbose_level", "log_info", "log_warning", "log_error")


@pytest.fixture(autouse=True)
def package() -> Iterator[logging.Logger]:
    """The package's logger at `info`, and afterwards as it was."""
    logger = logging.getLogger(PACKAGE)
    before = logger.level
    logger.setLevel(logging.INFO)
    yield logger
    logger.setLevel(before)


@pytest.mark.parametrize(("level", "shown"), SHOWN.items())
def test_a_level_is_shown_as_switches_and_set_by_them(
    level: int, shown: tuple[int, bool, bool, bool], package: logging.Logger
) -> None:
    settings = LogSettings("text")
    wanted = dict(zip(NAMES, shown, strict=True))
    assert settings.change(wanted) == {"log_file": "", "log_format": "text", **wanted} == settings.document()
    assert package.getEffectiveLevel() == level
    assert logging.getLogger(f"{PACKAGE}.server").isEnabledFor(level)
    assert not logging.getLogger(f"{PACKAGE}.server").isEnabledFor(level - 1)


def test_settings_that_are_not_named_stay_as_they_are() -> None:
    settings = LogSettings("json")
    assert settings.change({}) == settings.document()
    settings.change({"log_info": False})
    assert settings.change({"log_warning": False})["log_info"] is False
    assert settings.document()["log_format"] == "json"


def test_what_a_client_has_read_it_may_send_back() -> None:
    settings = LogSettings("text")
    assert settings.change(settings.document()) == settings.document()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log_file": "/tmp/x"}, "log_file: is set when the gateway starts"),  # noqa: S108 -- refused
        ({"log_format": "ISO8601"}, "log_format: is set when the gateway starts"),
        ({"log_verbose_level": 2}, "log_verbose_level: expected 0 or 1, there is one level of detail; got 2"),
        ({"log_verbose_level": True}, "log_verbose_level: expected 0 or 1"),
        ({"log_info": 1}, "log_info: expected true or false, got 1"),
        ({"log_error": None}, "log_error: expected true or false, got None"),
        ({"log_warning": False}, "a level that is on needs the more severe ones on too"),
        ({"log_info": False, "log_verbose_level": 1}, "a level that is on needs the more severe ones on too"),
        ({"log_fatal": True}, "log_fatal: unknown; settings: log_file, log_format, log_info"),
    ],
)
def test_what_cannot_take_effect_is_refused_and_changes_nothing(changes: dict[str, Any], message: str) -> None:
    settings = LogSettings("text")
    before = settings.document()
    with pytest.raises(InvalidRequest) as caught:
        settings.change({"log_error": True, **changes})
    assert caught.value.message.startswith(message)
    assert settings.document() == before


@pytest.mark.parametrize(
    "changes", [{"log_info": False}, {"log_info": False, "log_warning": False}, {"log_verbose_level": 1}]
)
def test_a_change_is_told_once_in_either_direction(
    changes: dict[str, Any], package: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    settings = LogSettings("text")
    back = settings.document()
    settings.change(changes)
    settings.change(changes)
    settings.change(back)
    assert [record.getMessage() for record in caplog.records] == [
        f"the log's level is changed to {logging.getLevelName(level)}" for level in (_level_of(changes), logging.INFO)
    ]
    assert package.level == logging.INFO


def _level_of(changes: dict[str, Any]) -> int:
    wanted = (changes.get("log_verbose_level", 0), *(changes.get(name, True) for name in NAMES[1:]))
    return next(level for level, shown in SHOWN.items() if shown == wanted)

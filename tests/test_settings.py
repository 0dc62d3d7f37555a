"""Every option can be set in three ways, the stronger way wins, and what cannot be honoured stops the start."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import StartupError
from gateway.settings import ENV_PREFIX, Settings, is_loopback, load_settings

TOKEN = "a token of some length"  # noqa: S105 -- of a test


@pytest.fixture(autouse=True)
def _without_the_callers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith(ENV_PREFIX)]:
        monkeypatch.delenv(name)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(text, "utf-8")
    return path


def refusal(options: dict[str, Any], config: Path | None = None) -> str:
    with pytest.raises(StartupError) as caught:
        load_settings(options, config)
    return str(caught.value)


def test_the_defaults_start_on_loopback_with_everything_built_in() -> None:
    settings = load_settings({})
    assert (settings.host, settings.port, settings.ops_host, settings.ops_port) == (
        "127.0.0.1",
        8080,
        "127.0.0.1",
        8081,
    )
    assert settings.redis_url is None
    assert settings.collector


def test_command_line_beats_environment_beats_file_beats_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(tmp_path, 'port = 1001\nops_port = 1002\nhost = "127.0.0.3"\nlog_level = "error"\n')
    monkeypatch.setenv("GATEWAY_PORT", "2001")
    monkeypatch.setenv("GATEWAY_OPS_PORT", "2002")
    settings = load_settings({"port": 3001, "host": None, "log_level": None}, config)
    assert settings.port == 3001
    assert settings.ops_port == 2002
    assert settings.host == "127.0.0.3"
    assert settings.log_level == "error"
    assert settings.log_format == "text"


def test_a_file_for_one_start_does_not_leak_into_the_next(tmp_path: Path) -> None:
    assert load_settings({}, write(tmp_path, "port = 1001\n")).port == 1001
    assert load_settings({}).port == 8080


def test_every_setting_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[str, tuple[str, Any]] = {
        "models": ("/srv/models", Path("/srv/models")),
        "model_keys": ("/etc/keys.pem", Path("/etc/keys.pem")),
        "model_memory_bytes": ("1000000", 1_000_000),
        "model_poll_seconds": ("5", 5.0),
        "data_dir": ("/srv/data", Path("/srv/data")),
        "host": ("0.0.0.0", "0.0.0.0"),  # noqa: S104 -- a value, nothing listens
        "port": ("9090", 9090),
        "grpc_port": ("9092", 9092),
        "ops_host": ("::1", "::1"),
        "ops_port": ("9091", 9091),
        "metrics_public": ("true", True),
        "control_public": ("true", True),
        "redis_url": ("redis://h:1", "redis://h:1"),
        "tls_cert": ("/etc/cert.pem", Path("/etc/cert.pem")),
        "tls_key": ("/etc/key.pem", Path("/etc/key.pem")),
        "workers": ("1", 1),
        "device": ("cuda", "cuda"),
        "device_id": ("1", 1),
        "device_memory_bytes": ("2000000000", 2_000_000_000),
        "threads": ("3", 3),
        "thread_budget": ("8", 8),
        "engine": ("process", "process"),
        "engine_arena_bytes": ("2000000", 2_000_000),
        "max_body_bytes": ("2048", 2048),
        "request_timeout": ("1.5", 1.5),
        "sample_rate": ("0.25", 0.25),
        "server_timing": ("false", False),
        "otlp_endpoint": ("http://collector:4318", "http://collector:4318"),
        "trace_rate": ("0.5", 0.5),
        "collector": ("false", False),
        "consumer_name": ("one", "one"),
        "drain_seconds": ("2", 2.0),
        "shutdown_timeout": ("3", 3.0),
        "route_poll_seconds": ("4", 4.0),
        "log_level": ("debug", "debug"),
        "log_format": ("json", "json"),
        "log_buffer_bytes": ("70000", 70_000),
        "log_stream_bytes": ("2000000", 2_000_000),
        "feedback_stream_entries": ("300", 300),
        "ops_token": (TOKEN, TOKEN),
        "id_key": (TOKEN, TOKEN),
    }
    assert values.keys() == Settings.model_fields.keys()
    for name, (text, _) in values.items():
        monkeypatch.setenv(ENV_PREFIX + name.upper(), text)
    settings = load_settings({})
    for name, (_, expected) in values.items():
        value = getattr(settings, name)
        assert (value.get_secret_value() if name in {"ops_token", "id_key"} else value) == expected


def test_another_process_gets_the_same_settings_through_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"port": 9090, "workers": 2, "collector": False, "id_key": TOKEN, "drain_seconds": 0.1, "grpc_port": None}
    settings = load_settings(given)
    options = settings.as_options()
    assert options["id_key"] == TOKEN
    assert options.keys() == given.keys() - {"grpc_port"}
    for name, text in options.items():
        monkeypatch.setenv(ENV_PREFIX + name.upper(), text)
    assert load_settings({}).model_dump() == settings.model_dump()


def test_only_linux_has_several_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert load_settings({"workers": 1}).workers == 1
    assert "workers 2: only Linux spreads the connections of a port over processes" in refusal({"workers": 2})


def test_every_setting_says_what_it_does() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("GATEWAY_PROT", "; did you mean GATEWAY_PORT?"),
        ("GATEWAY_SAMPLERATE", "; did you mean GATEWAY_SAMPLE_RATE?"),
        ("GATEWAY_REDIS_URI", "; did you mean GATEWAY_REDIS_URL?"),
        ("gateway_opsport", "; did you mean GATEWAY_OPS_PORT?"),
        ("GATEWAY_ZZZZZZZZZZZZ", ""),
    ],
)
def test_an_unknown_variable_is_refused_with_the_one_it_resembles(
    variable: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    assert refusal({}) == f"{variable} is not a setting{hint}"


def test_the_variable_of_the_commands_that_talk_to_a_gateway_does_not_stop_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GATEWAY_OPS_URL", "http://127.0.0.1:9999")
    assert load_settings({}).ops_port == 8081


def test_variables_of_other_programs_are_none_of_our_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAYS_PORT", "x")
    monkeypatch.setenv("MY_GATEWAY_PORT", "x")
    assert load_settings({}).port == 8080


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"port": 70_000}, "port:"),
        ({"port": -1}, "port:"),
        ({"grpc_port": 70_000}, "grpc_port:"),
        ({"workers": 0}, "workers:"),
        ({"workers": 129}, "workers:"),
        ({"threads": -1}, "threads:"),
        ({"thread_budget": -1}, "thread_budget:"),
        ({"model_memory_bytes": -1}, "model_memory_bytes:"),
        ({"model_poll_seconds": -1}, "model_poll_seconds:"),
        ({"max_body_bytes": 10}, "max_body_bytes:"),
        ({"request_timeout": 0}, "request_timeout:"),
        ({"sample_rate": 1.5}, "sample_rate:"),
        ({"sample_rate": -0.1}, "sample_rate:"),
        ({"trace_rate": 2}, "trace_rate:"),
        ({"route_poll_seconds": 0}, "route_poll_seconds:"),
        ({"drain_seconds": -1}, "drain_seconds:"),
        ({"shutdown_timeout": 0}, "shutdown_timeout:"),
        ({"device": "tpu"}, "device:"),
        ({"device_id": -1}, "device_id:"),
        ({"device_memory_bytes": 1000}, "device_memory_bytes:"),
        ({"log_level": "loud"}, "log_level:"),
        ({"log_format": "xml"}, "log_format:"),
    ],
)
def test_an_impossible_value_is_refused_naming_option_and_value(options: dict[str, Any], named: str) -> None:
    message = refusal(options)
    assert message.startswith(named)
    assert f"(got {next(iter(options.values()))!r})" in message


def test_a_call_with_more_threads_than_may_run_is_refused() -> None:
    assert refusal({"threads": 3, "thread_budget": 2}) == "threads 3 is more than thread_budget 2 lets run"
    assert load_settings({"threads": 2, "thread_budget": 2}).threads == 2


def test_what_stands_under_an_unknown_name_is_not_shown_for_it_may_be_a_mistyped_secret() -> None:
    message = refusal({"ops_tokn": "a secret of more than sixteen characters"})
    assert message.startswith("ops_tokn: ")
    assert "a secret" not in message


def test_all_mistakes_are_told_at_once() -> None:
    message = refusal({"port": -1, "sample_rate": 7})
    assert "port:" in message
    assert "sample_rate:" in message


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"port": 9000, "ops_port": 9000}, "port and ops_port are both 9000"),
        ({"port": 9000, "grpc_port": 9000}, "port and grpc_port are both 9000"),
        ({"ops_port": 9000, "grpc_port": 9000}, "ops_port and grpc_port are both 9000"),
        ({"ops_token": "short"}, "ops_token needs at least 16 characters"),
        ({"id_key": "short"}, "id_key needs at least 16 characters"),
        ({"ops_host": "0.0.0.0"}, "set GATEWAY_OPS_TOKEN"),  # noqa: S104 -- refused
        ({"trace_rate": 0.5}, "trace_rate has no effect without otlp_endpoint"),
        ({"trace_rate": 0.01}, "trace_rate has no effect without otlp_endpoint"),
        ({"ops_host": "10.0.0.1"}, "set GATEWAY_OPS_TOKEN"),
        ({"ops_host": "::"}, "set GATEWAY_OPS_TOKEN"),
        ({"ops_host": "gateway.example"}, "set GATEWAY_OPS_TOKEN"),
        ({"workers": 4, "log_buffer_bytes": 200_000}, "log_buffer_bytes needs at least 65536 for each of 4 workers"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], expected: str) -> None:
    assert expected in refusal(options)


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("collector:4318", "expected a URL such as http://127.0.0.1:4318"),
        ("grpc://collector:4317", "expected a URL such as http://127.0.0.1:4318"),
        ("http://", "expected a URL such as http://127.0.0.1:4318"),
        ("http://collector:0", "expected a URL such as http://127.0.0.1:4318"),
        ("http://collector?key=1", "expected a URL such as http://127.0.0.1:4318"),
        ("", "expected a URL such as http://127.0.0.1:4318"),
        ("http://collector:many", "otlp_endpoint: "),
        ("http://[collector", "otlp_endpoint: "),
        ("http://collector:4318/v1/traces", "leave out /v1/traces"),
        ("http://collector:4318/v1/traces/", "leave out /v1/traces"),
    ],
)
def test_an_endpoint_that_could_take_no_traces_is_refused(endpoint: str, expected: str) -> None:
    message = refusal({"otlp_endpoint": endpoint})
    assert message.startswith("otlp_endpoint")
    assert expected in message


def test_credentials_in_an_endpoint_are_refused_and_not_shown() -> None:
    message = refusal({"otlp_endpoint": "http://me:hush@collector:4318"})
    assert "OTEL_EXPORTER_OTLP_HEADERS" in message
    assert "hush" not in message


@pytest.mark.parametrize(
    "options",
    [
        {"port": 0, "ops_port": 0, "grpc_port": 0},
        {"ops_host": "0.0.0.0", "ops_token": TOKEN},  # noqa: S104 -- nothing listens
        {"ops_host": "localhost"},
        {"ops_host": "::1"},
        {"ops_host": "127.8.9.10"},
        {"host": "127.0.0.2", "port": 9000, "ops_port": 9000},
        {"otlp_endpoint": "http://127.0.0.1:4318", "trace_rate": 0.0},
        {"otlp_endpoint": "https://[::1]/prefix/"},
    ],
)
def test_what_only_looks_like_a_contradiction_is_fine(options: dict[str, Any]) -> None:
    assert load_settings(options).model_fields_set >= options.keys()


@pytest.mark.parametrize(
    ("text", "expected"), [("prot = 1", "prot: "), ('port = "many"', "port: "), ("[serve]\nport = 1", "serve: ")]
)
def test_a_file_with_a_mistake_is_refused_naming_the_key(tmp_path: Path, text: str, expected: str) -> None:
    assert refusal({}, write(tmp_path, text)).startswith(expected)


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    config = write(tmp_path, "port = ")
    assert str(config) in refusal({}, config)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "no.toml") in refusal({}, tmp_path / "no.toml")


@pytest.mark.parametrize("name", ["ops_token", "id_key"])
@pytest.mark.parametrize("secret", ["7215", "123456789012345678"])
def test_a_secret_is_never_printed(tmp_path: Path, name: str, secret: str) -> None:
    config = write(tmp_path, f"{name} = {secret}\n")
    message = refusal({}, config)
    assert name in message
    assert secret not in message
    assert TOKEN not in repr(load_settings({name: TOKEN}))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.255.0.1", True),
        ("::1", True),
        ("0.0.0.0", False),  # noqa: S104 -- the question
        ("::", False),
        ("192.168.1.1", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
    ],
)
def test_loopback_is_what_only_this_machine_can_reach(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected

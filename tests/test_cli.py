"""The command line against a running gateway: what it prints, and one line with exit code 2 for every mistake."""

from __future__ import annotations

import http.server
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

import gateway as package
from gateway.cli import main
from gateway.settings import Settings
from tests.support.requests import AFFINE
from tests.support.running import GatewayProcess, clean_environment

NAME = "affine"


@dataclass
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str, url: str | None = None, **environment: str) -> Done:
    """`gateway ...` in this process, with the ops port named through the environment."""
    stdout, stderr = io.StringIO(), io.StringIO()
    environment = clean_environment(**environment, **({"GATEWAY_OPS_URL": url} if url else {}))
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.setattr(sys, "argv", ["gateway", *arguments])
        patch.setattr(os, "environ", environment)
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            signal.signal(signal.SIGTERM, on_sigterm)
    return Done(int(ended.value.code or 0), stdout.getvalue(), stderr.getvalue())


def output(gateway: GatewayProcess, *arguments: str) -> str:
    done = run(*arguments, url=gateway.ops_url)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def mistake(*arguments: str, url: str | None = None, **environment: str) -> str:
    """The one line that a mistake gets."""
    done = run(*arguments, url=url, **environment)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line.removeprefix("error: ")


def shown(gateway: GatewayProcess) -> dict[str, object]:
    document: dict[str, object] = orjson.loads(output(gateway, "routes", "show", NAME))
    return document


@pytest.fixture
def _default_again(gateway: GatewayProcess) -> Iterator[None]:
    yield
    tag = gateway.ops.get(f"/admin/routes/{NAME}").headers["etag"]
    everything = {"variants": [{"name": "default", "version": "2", "weight": 100}]}
    assert gateway.ops.put(f"/admin/routes/{NAME}", json=everything, headers={"If-Match": tag}).status_code == 200


def test_python_m_gateway_is_the_same_command() -> None:
    for arguments, code, printed in ((("version",), 0, f"{package.__version__}\n"), (("serve", "--port", "-1"), 2, "")):
        command = [sys.executable, "-m", "gateway", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=clean_environment())
        assert (done.returncode, done.stdout) == (code, printed)
        assert "Traceback" not in done.stderr


def test_serve_has_an_option_for_every_setting_with_its_default() -> None:
    text = run("serve", "--help").stdout
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        if field.default not in {None, True, False}:
            assert str(field.default) in text


@pytest.mark.usefixtures("_default_again")
class TestRoutes:
    def test_every_route_is_listed(self, gateway: GatewayProcess) -> None:
        text = output(gateway, "routes", "list")
        for name in gateway.public.get("/v2/models").json()["models"]:
            assert name in text
        assert "100 %" in text

    def test_a_route_is_shown_as_the_document_that_set_takes(self, gateway: GatewayProcess, tmp_path: Path) -> None:
        output(gateway, "routes", "set", NAME, "stable=1:90", "canary=2:10", "--sticky", "x-user-id")
        document = shown(gateway)
        (tmp_path / "route.json").write_bytes(orjson.dumps(document))
        output(gateway, "routes", "set", NAME, "--file", str(tmp_path / "route.json"))
        again = shown(gateway)
        assert {**again, "revision": None} == {**document, "revision": None}

    def test_weights_are_set_and_in_force_at_once(self, gateway: GatewayProcess) -> None:
        text = output(gateway, "routes", "set", NAME, "only=1:100", "--reason", "back to the old one")
        assert "only" in text
        assert gateway.predict(NAME, AFFINE).json()["model_version"] == "1"

    def test_known_variants_keep_their_version_and_place(self, gateway: GatewayProcess) -> None:
        output(gateway, "routes", "set", NAME, "stable=1:100", "canary=2:0")
        output(gateway, "routes", "set", NAME, "canary=25.5", "stable=74.5")
        assert shown(gateway)["variants"] == [
            {"name": "stable", "version": "1", "weight": 74.5},
            {"name": "canary", "version": "2", "weight": 25.5},
        ]

    def test_variants_that_are_not_named_leave(self, gateway: GatewayProcess) -> None:
        output(gateway, "routes", "set", NAME, "stable=1:50", "canary=2:50")
        output(gateway, "routes", "set", NAME, "canary=100")
        assert shown(gateway)["variants"] == [{"name": "canary", "version": "2", "weight": 100}]

    def test_the_history_says_who_and_why_word_for_word(self, gateway: GatewayProcess) -> None:
        reason = "see [incident 7] and [/x] :smile:"
        output(gateway, "routes", "set", NAME, "stable=1:60", "canary=2:40", "--reason", reason)
        text = output(gateway, "routes", "history", NAME, "--limit", "1")
        assert reason in text
        assert "stable=60 canary=40" in text
        assert "@" in text


def test_drift_reports_every_version(gateway: GatewayProcess) -> None:
    text = output(gateway, "drift")
    assert "affine 1" in text
    assert "affine 2" in text
    assert "affine 1" not in output(gateway, "drift", "classifier")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("routes", "show", "absent"), "no route 'absent'; routes: affine"),
        (("routes", "show", "affine/history"), "affine"),
        (("routes", "show", "../drift"), "Not Found"),
        (("routes", "show", "a b?c#d"), "no route 'a b?c#d'"),
        (("routes", "history", "absent"), "no route 'absent'"),
        (("routes", "set", "absent", "a=1:100"), "no route 'absent'"),
        (("routes", "set", NAME), "VARIANT=WEIGHT arguments or --file"),
        (("routes", "set", NAME, "x=1:100", "--file", "pyproject.toml"), "one of the two"),
        (("routes", "set", NAME, "canary"), "'canary': expected VARIANT=WEIGHT"),
        (("routes", "set", NAME, "canary=ten"), "'canary=ten': expected VARIANT=WEIGHT"),
        (("routes", "set", NAME, "canary=1:1.2.3"), "'1.2.3' is not a number"),
        (("routes", "set", NAME, "canary=100"), "'canary' is new (variants: default); say its version"),
        (("routes", "set", NAME, "canary=9:100"), "variants[0].version: version '9' is not loaded"),
        (("routes", "set", NAME, "canary=1:99"), "variants: weights are per cent and must add up to 100"),
        (("routes", "set", NAME, "a=1:50", "a=2:50"), "variants[1].name: 'a' occurs twice"),
        (("routes", "set", NAME, "a=1:100", "--sticky", "no header"), "sticky.header: "),
        (("routes", "set", NAME, "a=1:100", "--reason", "x" * 501), "reason: at most 500"),
        (("drift", "absent"), "unknown model 'absent'"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(
    gateway: GatewayProcess, arguments: tuple[str, ...], expected: str
) -> None:
    assert expected in mistake(*arguments, url=gateway.ops_url)


@pytest.mark.parametrize(("content", "expected"), [(b"{", "not JSON"), (b"[]", "expected a JSON object")])
def test_a_file_that_is_no_route_is_named(
    gateway: GatewayProcess, tmp_path: Path, content: bytes, expected: str
) -> None:
    (tmp_path / "route.json").write_bytes(content)
    line = mistake("routes", "set", NAME, "--file", str(tmp_path / "route.json"), url=gateway.ops_url)
    assert line.startswith(f"{tmp_path / 'route.json'}: {expected}")


class Imposter(http.server.BaseHTTPRequestHandler):
    """Answers everything with a friendly page."""

    def do_GET(self) -> None:
        """200, whatever was asked for."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@contextmanager
def imposter() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Imposter) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class TestWrongAddress:
    @pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1:1", "http://no.such.host.invalid"])
    def test_nobody_there(self, url: str) -> None:
        line = mistake("routes", "list", url=url)
        assert url in line
        assert "--ops-url" in line

    @pytest.mark.parametrize("url", ["http://[", "http://h:port", ""])
    def test_no_address_at_all(self, url: str) -> None:
        assert "--ops-url" in mistake("routes", "list", "--ops-url", url)

    def test_the_public_port(self, gateway: GatewayProcess) -> None:
        assert "Not Found" in mistake("routes", "list", url=gateway.public_url)

    @pytest.mark.parametrize("arguments", [("routes", "list"), ("routes", "show", NAME), ("drift",)])
    def test_somebody_else(self, arguments: tuple[str, ...]) -> None:
        with imposter() as url:
            assert "the ops port of a gateway?" in mistake(*arguments, url=url)


def test_collect_alone_needs_a_store() -> None:
    assert "--redis-url" in mistake("collect")


def test_a_misspelt_variable_stops_a_start_with_one_line() -> None:
    assert "did you mean GATEWAY_MODELS?" in mistake("serve", GATEWAY_MODEL="x")

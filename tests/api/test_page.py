"""The page `/try`, in a browser."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support import browser as support
from tests.support.browser import CONTROL, ENTER, TAB, Browser, browsing
from tests.support.running import GatewayProcess
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
LABELS = {"model": "Model", "kind": "Protocol", "body": "Body"}


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if (reason := support.missing()) is not None:
        pytest.skip(reason)
    with browsing(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture
def page(window: Browser, bundled: GatewayProcess) -> Browser:
    """The page over the bundled models, with the first of them chosen."""
    return opened(window, bundled)


def opened(window: Browser, gateway: GatewayProcess) -> Browser:
    window.open(f"{gateway.public_url}/try")
    wait_until(lambda: window.value("#body"))
    window.complaints()
    return window


def answer(page: Browser) -> tuple[str, Any]:
    """Status and document, once they are there."""
    wait_until(lambda: page.text("#took"))
    return page.text("#status"), orjson.loads(page.text("#answer"))


def options(page: Browser, selector: str) -> list[str]:
    found: list[str] = page.run("return [...document.querySelector(arguments[0]).options].map((o) => o.text)", selector)
    return found


def test_it_shows_status_time_id_and_body_of_a_prediction(page: Browser, bundled: GatewayProcess) -> None:
    page.choose("#model", "employment")
    assert page.text("#path") == "POST /v2/models/employment/infer"
    assert "Is a person in Massachusetts employed?" in page.text("#about")
    page.click("#send")
    status, document = answer(page)
    assert status == "200 OK"
    assert page.text("#took").endswith(" ms")
    assert len(page.text("#prediction")) == 48
    assert document == bundled.predict("employment", orjson.loads(page.value("#body"))).json()
    assert page.text("#answer").startswith('{\n  "model_name": "employment",\n')
    assert page.complaints() == []


def test_every_model_works_as_it_is_offered(page: Browser) -> None:
    assert options(page, "#model") == ["accidents", "digits", "employment"]
    for model in options(page, "#model"):
        page.choose("#model", model)
        assert options(page, "#kind") == ["V2 infer, tensors", "V1 predict, instances", "V1 predict, inputs"]
        for kind in options(page, "#kind"):
            page.choose("#kind", kind)
            assert page.text("#took") == ""
            page.click("#send")
            assert answer(page)[0] == "200 OK"


def test_it_can_be_used_with_the_keyboard_alone(page: Browser) -> None:
    page.run("document.querySelector('#model').focus()")
    reached = []
    for _ in range(4):
        page.press(TAB)
        reached.append(page.run("return document.activeElement.id || document.activeElement.localName"))
    assert reached == ["kind", "summary", "body", "send"]
    page.press(ENTER)
    assert answer(page)[0] == "200 OK"
    page.choose("#kind", "V1 predict, inputs")
    page.type("#body", CONTROL + ENTER)
    assert answer(page)[0] == "200 OK"


def test_every_control_has_a_label(page: Browser) -> None:
    found = page.run(
        "return [...document.querySelectorAll('select, textarea')].map((c) => [c.id, c.labels[0].textContent])"
    )
    assert dict(found) == LABELS


def test_a_mistake_is_shown_as_the_gateway_tells_it(page: Browser) -> None:
    page.run("document.querySelector('#body').value = '{}'")
    page.click("#send")
    status, document = answer(page)
    assert status == "400 Bad Request"
    assert document["error"].startswith("inputs: expected a non-empty list")
    assert page.text("#prediction") == "none"


def test_large_integers_keep_their_digits(window: Browser, gateway: GatewayProcess) -> None:
    page = opened(window, gateway)
    page.choose("#model", "echo-INT64")
    page.choose("#kind", "V1 predict, instances")
    page.run("document.querySelector('#body').value = '{\"instances\": [[9007199254740993, -1]]}'")
    page.click("#send")
    assert answer(page)[0] == "200 OK"
    assert page.text("#answer") == '{\n  "predictions": [\n    [9007199254740993, -1]\n  ]\n}'


def test_it_fits_a_small_screen(page: Browser) -> None:
    page.emulate("setDeviceMetricsOverride", width=320, height=640, deviceScaleFactor=1, mobile=True)
    try:
        page.click("#send")
        answer(page)
        width, room = page.run("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert (width, room) == (320, 320)
    finally:
        page.emulate("clearDeviceMetricsOverride")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_light_or_dark_as_the_reader_likes(page: Browser, scheme: str) -> None:
    page.emulate("setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    colours = page.run(
        "const style = getComputedStyle(document.body);"
        "return [style.color, style.backgroundColor].map((c) => c.match(/[0-9]+/g).map(Number))"
    )
    text, ground = (sum(colour) for colour in colours)
    assert (text > ground) == (scheme == "dark")
    assert abs(text - ground) > 500


def test_no_script_but_its_own_runs(page: Browser, bundled: GatewayProcess) -> None:
    policy = bundled.public.get("/try").headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    page.run("const s = document.createElement('script'); s.text = 'window.injected = true'; document.body.append(s)")
    assert page.run("return window.injected ?? null") is None
    assert any("Content Security Policy" in complaint for complaint in page.complaints())


def test_it_is_in_the_wheel(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (wheel,) = tmp_path.glob("*.whl")
    assert "gateway/api/static/try.html" in zipfile.ZipFile(wheel).namelist()

"""A headless Chromium, driven by its own `chromedriver` in the words of the W3C's WebDriver: JSON over HTTP."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.support.waiting import wait_until

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-proxy-server"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key under which WebDriver names an element."""
CONTROL, ENTER, TAB = "\ue009", "\ue007", "\ue004"
"""WebDriver's code points for keys."""


def missing() -> str | None:
    """What of the browser is not installed, if anything."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"no {' and no '.join(absent)} (Debian: chromium, chromium-driver)" if absent else None


class Browser:
    """One window."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def command(self, path: str, document: dict[str, Any] | None = None) -> Any:
        """One WebDriver command of the session; GET without a document."""
        response = self._client.get(path) if document is None else self._client.post(path, json=document)
        value = response.json()["value"]
        assert response.status_code == 200, value
        return value

    def open(self, url: str) -> None:
        """Go there and wait until it is loaded."""
        self.command("url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What the script returns."""
        return self.command("execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector: str) -> str:
        """The text of an element."""
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))

    def value(self, selector: str) -> str:
        """What is entered in a control."""
        return str(self.run("return document.querySelector(arguments[0]).value", selector))

    def click(self, selector: str) -> None:
        """As a person would, on what is visible."""
        self.command(f"element/{self._find(selector)}/click", {})

    def type(self, selector: str, keys: str) -> None:
        """Type into an element."""
        self.command(f"element/{self._find(selector)}/value", {"text": keys})

    def press(self, *keys: str) -> None:
        """Keys for whatever has the focus."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.command("actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def choose(self, selector: str, text: str) -> None:
        """An option of a list, by its text."""
        options = self.run("return [...document.querySelector(arguments[0]).options].map((o) => o.text)", selector)
        self.click(f"{selector} option:nth-child({options.index(text) + 1})")

    def emulate(self, method: str, **parameters: Any) -> None:
        """A command of Chromium's own protocol."""
        self.command("goog/cdp/execute", {"cmd": f"Emulation.{method}", "params": parameters})

    def complaints(self) -> list[str]:
        """What the browser wrote to its console since it was asked last."""
        return [entry["message"] for entry in self.command("se/log", {"type": "browser"})]

    def _find(self, selector: str) -> str:
        return str(self.command("element", {"using": "css selector", "value": selector})[ELEMENT])


@contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """A browser with an empty profile in `folder`."""
    log = folder / "chromedriver.log"
    with log.open("w") as output:
        driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=output, stderr=output)
    try:
        started = wait_until(lambda: re.search(r"started successfully on port (\d+)", log.read_text()), 30.0)
        assert started is not None
        url = f"http://127.0.0.1:{started[1]}"
        options = {"args": [*FLAGS, f"--user-data-dir={folder / 'profile'}"], "binary": shutil.which("chromium")}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = httpx.post(
            f"{url}/session", json={"capabilities": {"alwaysMatch": wanted}}, timeout=60.0, trust_env=False
        ).json()["value"]
        assert "sessionId" in session, session
        window = f"{url}/session/{session['sessionId']}"
        with httpx.Client(base_url=window, timeout=60.0, trust_env=False) as client:
            try:
                yield Browser(client)
            finally:
                # The driver does not take its browser along. Below the base URL there would be a slash too many.
                httpx.delete(window, timeout=60.0, trust_env=False).raise_for_status()
    finally:
        driver.terminate()
        driver.wait(10.0)

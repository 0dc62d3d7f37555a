"""The Python in the README and the docs runs against the bundled models and prints what stands below it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.running import GatewayProcess, clean_environment, running

ROOT = Path(__file__).parent.parent
EXAMPLE = re.compile(r"^```python\n(?P<code>.*?)^```\n\n```\n(?P<output>.*?)^```$", re.MULTILINE | re.DOTALL)
DOCUMENTED_URL = "http://127.0.0.1:8080"


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """What `make serve` starts, on other ports."""
    with running(ROOT / "models", tmp_path_factory.mktemp("bundled"), "--no-collector") as gateway:
        yield gateway


@pytest.mark.parametrize("page", ["README.md", "docs/client.md", "docs/protocol.md"])
def test_an_example_prints_what_the_page_says(bundled: GatewayProcess, page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    examples = list(EXAMPLE.finditer(text))
    assert len(examples) == text.count("```python") > 0
    for example in examples:
        code = example["code"].replace(DOCUMENTED_URL, bundled.public_url)
        code = code.replace(DOCUMENTED_URL.removeprefix("http://"), bundled.public_url.removeprefix("http://"))
        command = [sys.executable, "-W", "error", "-c", code]
        done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False)
        assert (done.stdout, done.stderr) == (example["output"], "")

"""Size and layering are promises as well, and so are the docs: what can be set, scraped or met is described there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.errors import GatewayError
from gateway.settings import ENV_PREFIX, Settings
from gateway.telemetry.metrics import INSTRUMENTS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gateway"
MODULES = sorted(PACKAGE.rglob("*.py"))

MAX_LINES = 400
LONGER: dict[str, str] = {}
"""Modules that may be longer, each with the reason."""

OTHER_VARIABLES = {
    f"{ENV_PREFIX}OPS_URL": "names the gateway to the commands that talk to one",
    f"{ENV_PREFIX}SERVICE_HOST": "set by Kubernetes for a service called gateway; the docs say what to do about it",
}
"""Variables of the docs that are no settings."""


def lines_of(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def docs() -> str:
    """README and everything under docs/."""
    return "\n".join(path.read_text("utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])


def error_tree(root: type[GatewayError] = GatewayError) -> list[type[GatewayError]]:
    return [root, *(found for child in root.__subclasses__() for found in error_tree(child))]


def test_no_module_is_longer_than_a_reader_can_hold() -> None:
    long = {str(path.relative_to(ROOT)): lines_of(path) for path in MODULES if lines_of(path) > MAX_LINES}
    assert long.keys() == LONGER.keys()


def test_imports_keep_to_the_contracts() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_first_what_it_is_for(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not text.strip() or text.startswith('"""')


def test_every_setting_is_documented_under_the_name_of_its_variable() -> None:
    text = docs()
    assert [name for name in Settings.model_fields if not is_named(ENV_PREFIX + name.upper(), name, text)] == []


def is_named(variable: str, option: str, text: str) -> bool:
    """As a variable, as an option of the command line, or as a key of the file."""
    names = (variable, f"--{option.replace('_', '-')}", f"--no-{option.replace('_', '-')}", f"`{option}`")
    return any(re.search(rf"{re.escape(name)}(?![\w-])", text) for name in names)


def test_every_metric_is_documented() -> None:
    text = docs()
    assert [i.name for i in INSTRUMENTS if not re.search(rf"\b{i.name}\b", text)] == []


def test_every_error_code_is_documented() -> None:
    text = docs()
    assert [error.code for error in error_tree() if f"`{error.code}`" not in text] == []


def test_every_path_of_the_api_is_documented() -> None:
    text = docs()
    sources = "\n".join(path.read_text("utf-8") for path in (PACKAGE / "api").glob("*.py"))
    paths = set(re.findall(r'Route\("(/[^"]+)"', sources))
    assert paths
    undocumented = [path for path in paths if not re.search(re.sub(r"\\{\w+\\}", r"[^/\\s`]+", re.escape(path)), text)]
    assert undocumented == []


def test_the_docs_name_no_setting_or_metric_that_is_gone() -> None:
    text = docs()
    variables = {ENV_PREFIX + name.upper() for name in Settings.model_fields} | OTHER_VARIABLES.keys()
    assert set(re.findall(rf"\b{ENV_PREFIX}[A-Z_]+[A-Z]\b", text)) <= variables
    suffixes = "(?:_total|_seconds|_rows|_ready|_revision|_percent|_invalid|_status|_score)"
    named = set(re.findall(rf"\bgateway_[a-z_]+?{suffixes}\b(?!_)", text))
    assert named <= {instrument.name for instrument in INSTRUMENTS}


def test_links_between_the_docs_lead_somewhere() -> None:
    links = [
        (path, target)
        for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text("utf-8"))
        if "://" not in target
    ]
    assert [f"{path.name}: {target}" for path, target in links if not (path.parent / target).exists()] == []

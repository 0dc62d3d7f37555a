"""Where the bench keeps its things. What it makes goes into `.bench/`; only results are kept in the repository."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "bench" / "peers"
RESULTS = ROOT / "bench" / "results"
WORK = ROOT / ".bench"
MODELS = WORK / "models"
VENVS = WORK / "venvs"
DOWNLOADS = WORK / "downloads"
REPOSITORIES = WORK / "repositories"
"""One for each scenario that needs its own."""
BUNDLED = ROOT / "models"


def relative(path: Path) -> str:
    """As written in commands, which all run in the repository's root: results name no folder of one machine."""
    return str(path.relative_to(ROOT))

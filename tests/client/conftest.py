"""Each test that asks is of both clients."""

from __future__ import annotations

import pytest

from tests.support.asking import Ask, ask_async, ask_sync


@pytest.fixture(params=[ask_sync, ask_async], ids=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Either client."""
    asking: Ask = request.param
    return asking

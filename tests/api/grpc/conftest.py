from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.requests import turns
from tests.support.rpc import address_of, stub
from tests.support.running import GatewayProcess, running


@pytest.fixture(scope="session")
def rpc_gateway(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway with a gRPC port that tests share: leave its routes as they were, and stop nothing."""
    options = ("--no-collector", "--max-body-bytes", "65536", "--grpc-port", "0")
    with running(models, tmp_path_factory.mktemp("rpc"), *options) as started:
        # Its rows of zeros were fast, so the first slow one still runs on the loop, and no other.
        assert started.predict("busy", turns(5_000)).status_code == 200
        yield started


@pytest.fixture(scope="session")
def address(rpc_gateway: GatewayProcess) -> str:
    return address_of(rpc_gateway)


@pytest.fixture
def service(address: str) -> Iterator[Any]:
    """A stub of the whole service."""
    with grpc.insecure_channel(address) as channel:
        yield stub(channel)

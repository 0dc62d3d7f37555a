from __future__ import annotations

import asyncio
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.state import keys
from gateway.state.client import Store, connect
from gateway.state.id_key import KEY_BYTES, shared_id_key

Run = Callable[[Any], Any]


def test_all_gateways_of_a_store_get_the_same_key_whoever_is_first(store_url: str, tmp_path: Path, run: Run) -> None:
    async def scenario() -> list[bytes]:
        clients = [connect(store_url) for _ in range(6)]
        found = await asyncio.gather(
            *(shared_id_key(client, tmp_path / f"{number}.key") for number, client in enumerate(clients))
        )
        for client in clients:
            await client.aclose()
        return found

    found = run(scenario())
    assert len(set(found)) == 1
    assert len(found[0]) == KEY_BYTES
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {found[0]}


def test_the_copy_is_readable_by_its_owner_alone(store: Store, tmp_path: Path, run: Run) -> None:
    run(shared_id_key(store, tmp_path / "id.key"))
    assert stat.S_IMODE((tmp_path / "id.key").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["id.key"]


def test_a_restart_without_the_store_knows_the_key(store: Store, tmp_path: Path, run: Run) -> None:
    path = tmp_path / "id.key"
    key = run(shared_id_key(store, path))
    nowhere = connect("redis://127.0.0.1:1")
    assert run(shared_id_key(nowhere, path)) == key
    run(nowhere.aclose())


def test_a_store_that_lost_its_data_learns_the_key_again(store: Store, tmp_path: Path, run: Run) -> None:
    path = tmp_path / "id.key"
    key = run(shared_id_key(store, path))

    async def scenario() -> None:
        await store.delete(keys.ID_KEY)
        assert await shared_id_key(store, path) == key
        assert await store.get(keys.ID_KEY) == key

    run(scenario())


def test_the_stores_key_wins_over_a_copy_of_another(store: Store, tmp_path: Path, run: Run) -> None:
    key = run(shared_id_key(store, tmp_path / "one"))
    (tmp_path / "two").write_bytes(b"another key, from another store")
    assert run(shared_id_key(store, tmp_path / "two")) == key
    assert (tmp_path / "two").read_bytes() == key


def test_a_first_start_without_the_store_makes_a_key_and_keeps_it(tmp_path: Path, run: Run) -> None:
    nowhere = connect("redis://127.0.0.1:1")
    path = tmp_path / "id.key"
    key = run(shared_id_key(nowhere, path))
    assert len(key) == KEY_BYTES
    assert run(shared_id_key(nowhere, path)) == key
    run(nowhere.aclose())

import re

import orjson
import pytest

from bench import model
from bench.environments import pins
from bench.places import PEERS
from bench.scenarios import QUICK, QUICK_SERVERS, SCENARIOS
from bench.servers import KINDS

PINNED = re.compile(r"[A-Za-z0-9_.\-\[\]]+==\S+( ; .+)?")


def test_the_gateway_takes_part_in_every_scenario() -> None:
    assert all(one.includes("gateway", "oip") for one in SCENARIOS.values())


def test_the_quick_run_is_part_of_the_full_one() -> None:
    assert set(QUICK) <= set(SCENARIOS)
    assert set(QUICK_SERVERS) <= set(KINDS)


def test_a_peer_with_its_own_body_is_only_asked_single_rows() -> None:
    asked = [one for one in SCENARIOS.values() if one.includes("mosec", "row") and one.load != "idle"]

    assert asked
    assert {one.rows for one in asked} == {1}


@pytest.mark.parametrize("peer", sorted(folder.name for folder in PEERS.iterdir() if folder.is_dir()))
def test_peers_are_pinned_and_name_no_address(peer: str) -> None:
    lines = (PEERS / peer / "requirements.txt").read_text().splitlines()

    assert all(PINNED.fullmatch(line) for line in lines)
    assert len(pins(peer)) == len(lines)
    assert peer in KINDS


def test_both_kinds_of_body_hold_the_same_row() -> None:
    tensor = orjson.loads(model.oip_body("mlp", 1))["inputs"][0]

    assert tensor["shape"] == [1, model.FEATURES]
    assert tensor["data"] == orjson.loads(model.row_body("mlp"))["x"]


def test_a_binary_body_is_its_json_and_its_bytes() -> None:
    body, head = model.binary_body("mlp", 2)
    tensor = orjson.loads(body[:head])["inputs"][0]

    assert tensor["parameters"]["binary_data_size"] == len(body) - head == 2 * model.FEATURES * 4
    assert body[head:] == model.rows("mlp", 2).tobytes()

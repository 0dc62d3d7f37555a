"""Which revision a rollback goes back to, whatever was rolled back, edited by hand or lost before."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import NotFound
from gateway.serving.route_history import MAX_TOLD, RouteHistory
from gateway.state.route_store import AuditEntry


def document(revision: int, weight: int) -> dict[str, Any]:
    return {"name": "m", "revision": revision, "variants": [{"name": "v", "version": "1", "weight": weight}]}


def history(*changes: tuple[int, int] | tuple[int, int, int], before: dict[str, Any] | None = None) -> RouteHistory:
    """Of (revision, weight[, restores]), the oldest first."""
    entries = [
        AuditEntry(revision, revision, "ann", "because", before, document(revision, weight), *restores)
        for revision, weight, *restores in changes
    ]
    return RouteHistory("m", entries[::-1])


def gone_back_to(of: RouteHistory, current: dict[str, Any] | None) -> list[int]:
    return [revision for revision, _ in of.before(current)]


def test_what_is_before_is_every_earlier_revision_that_says_something_else() -> None:
    changes = history((1, 10), (2, 20), (3, 10), (4, 30))
    assert gone_back_to(changes, document(4, 30)) == [3, 2, 1]
    assert gone_back_to(changes, document(3, 10)) == [2]


def test_a_second_rollback_goes_on_into_the_past() -> None:
    assert gone_back_to(history((1, 10), (2, 20), (3, 30), (4, 20, 2)), document(4, 20)) == [1]
    twice = history((1, 10), (2, 20), (3, 30), (4, 20, 2), (5, 10, 1))
    assert gone_back_to(twice, document(5, 10)) == []


def test_a_change_after_a_rollback_goes_back_to_the_rollback() -> None:
    assert gone_back_to(history((1, 10), (2, 20), (3, 10, 1), (4, 40)), document(4, 40))[0] == 3


@pytest.mark.parametrize("current", [None, document(2, 99), document(1, 99), document(900, 99), {"revision": "x"}])
def test_what_somebody_typed_in_or_lost_goes_back_to_the_newest(current: Any) -> None:
    assert gone_back_to(history((1, 10), (2, 20)), current) == [2, 1]


def test_what_a_change_replaced_is_remembered_too() -> None:
    changes = history((1, 10), before={**document(0, 100), "name": "m"})
    assert gone_back_to(changes, document(1, 10)) == [0]
    assert changes.document(0)["variants"][0]["weight"] == 100


def test_a_history_that_restores_itself_ends() -> None:
    assert gone_back_to(history((1, 10), (2, 20, 2)), document(2, 20)) == [1]
    assert gone_back_to(history((1, 10), (2, 20, 7)), document(2, 20)) == [1]


def test_an_unknown_revision_is_told_with_those_there_are() -> None:
    with pytest.raises(NotFound, match=r"revision 7 .* revisions that are: 1 to 2"):
        history((1, 10), (2, 20)).document(7)
    with pytest.raises(NotFound, match="revisions that are: none"):
        RouteHistory("m", []).document(7)


def test_whoever_was_too_slow_learns_who_changed_what_when_and_why() -> None:
    told = history((1, 10), (2, 20)).told_since(1, 2, document(2, 20))
    assert told == "; ann changed it at 1970-01-01 00:00:02 UTC: because; what changed: variants.v.weight: 10 -> 20"


def test_a_long_list_of_changes_is_cut() -> None:
    many = {**document(2, 10), **{str(number): number for number in range(20)}}
    told = history((1, 10), (2, 20)).told_since(1, 2, many)
    assert told.endswith(f", and {20 - MAX_TOLD} more")

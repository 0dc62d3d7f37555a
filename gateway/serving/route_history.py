"""Earlier revisions of a route, as its audit stream remembers them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from gateway.errors import NotFound
from gateway.routing.differences import differences
from gateway.state.route_store import AuditEntry
from gateway.types import JsonObject

REMEMBERED = 1_000
"""Audit entries looked at, the newest."""
MAX_TOLD = 5
"""Differences in one message."""


class RouteHistory:
    """Documents by revision. What an edit by hand had put in place is remembered once a change has replaced it."""

    def __init__(self, name: str, entries: Sequence[AuditEntry]) -> None:
        """`entries` stand newest first."""
        self._name = name
        self._latest = entries[0] if entries else None
        self._documents: dict[int, JsonObject] = {}
        self._restores: dict[int, int] = {}
        for entry in entries:
            self._remember(entry.revision, entry.document)
            self._remember((entry.before or {}).get("revision"), entry.before)
            if entry.restores is not None:
                self._restores.setdefault(entry.revision, entry.restores)

    def document(self, revision: int) -> JsonObject:
        """The document of a revision. Raises `NotFound` saying which are known."""
        try:
            return self._documents[revision]
        except KeyError:
            known = f"{min(self._documents)} to {max(self._documents)}" if self._documents else "none"
            raise NotFound(
                f"route {self._name!r}: revision {revision} is not among the last {REMEMBERED} changes; "
                f"revisions that are: {known}"
            ) from None

    def before(self, current: JsonObject | None) -> Iterator[tuple[int, JsonObject]]:
        """What was in place before `current`, the latest first.

        What a rollback has taken back is passed over, so that a second one goes on into the past. Where somebody edited
        by hand, or the document is lost, everything in the history was before.
        """
        revision = (current or {}).get("revision")
        start = max(self._documents, default=0) + 1
        if isinstance(revision, int) and self._documents.get(revision) == current:
            start = revision
            while (earlier := self._restores.get(start, start)) < start:
                start = earlier
        for number in sorted(self._documents, reverse=True):
            if number < start and not (current and is_same(self._documents[number], current)):
                yield number, self._documents[number]

    def told_since(self, expected: int, revision: int, current: JsonObject | None) -> str:
        """What somebody has to know whose change was made for revision `expected`: who changed what since, and why."""
        told = ""
        if self._latest is not None and self._latest.revision == revision:
            when = datetime.fromtimestamp(self._latest.changed_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            because = f": {self._latest.reason}" if self._latest.reason else ""
            told += f"; {self._latest.actor} changed it at {when}{because}"
        if expected in self._documents and current is not None:
            changes = [str(change) for change in differences(self._documents[expected], current)]
            more = f", and {len(changes) - MAX_TOLD} more" if len(changes) > MAX_TOLD else ""
            told += f"; what changed: {', '.join(changes[:MAX_TOLD]) or 'nothing but the revision'}{more}"
        return told

    def _remember(self, revision: object, document: JsonObject | None) -> None:
        if type(revision) is int and document:
            self._documents.setdefault(revision, document)


def is_same(one: JsonObject, other: JsonObject) -> bool:
    """Whether two documents say the same, whatever their revisions."""
    return {**one, "revision": 0} == {**other, "revision": 0}

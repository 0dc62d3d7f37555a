"""Feedback entries on their way into the performance counts: decoded, held, committed with their acknowledgement."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.collector.feedback import Label, decode_label, tally
from gateway.protocol.log_codec import MalformedEntry
from gateway.state.stats_store import StatsStore
from gateway.state.streams import Entry


class LabelFolder:
    """Holds what was read of all models' feedback streams until `commit`."""

    def __init__(self, stats: StatsStore, consumer: str) -> None:
        self._stats = stats
        self._consumer = consumer
        self._held: dict[str, list[tuple[bytes, Label]]] = {}

    @property
    def held_entries(self) -> int:
        """Labels that wait for `commit`."""
        return sum(map(len, self._held.values()))

    def drop(self) -> None:
        """Forget everything; whoever reads the pending entries again brings it back."""
        self._held.clear()

    async def fold(self, model: str, entries: Sequence[Entry]) -> None:
        """Take these labels; an entry that is none is set aside for good."""
        held = self._held.setdefault(model, [])
        for entry in entries:
            try:
                held.append((entry.id, decode_label(entry.fields)))
            except MalformedEntry as error:
                await self._stats.dead_letter(model, entry.stream, entry.id, entry.fields, str(error))

    async def commit(self) -> None:
        """Add what is held to the counts and acknowledge it. Raises `NotOurs`; `drop` and read again."""
        for model, held in self._held.items():
            if held:
                counts = tally(label for _, label in held)
                ids = [id_ for id_, _ in held]
                await self._stats.commit_feedback(model, consumer=self._consumer, counts=counts, ids=ids)
                held.clear()

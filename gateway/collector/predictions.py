"""Prediction entries on their way into the open windows: decoded, folded, committed with their acknowledgement.

The rule of this file: memory is a cache. What is held here is pending in the store, so it may be dropped at any moment
and read again; what was committed is never held.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gateway.collector.catalog import Catalog, Unwatched, Watched
from gateway.collector.columns import columns_of, layout, stack
from gateway.protocol.log_codec import LogEntry, MalformedEntry, decode
from gateway.state.stats_store import StatsStore
from gateway.state.streams import Entry
from gateway.stats.codec import from_bytes, to_bytes
from gateway.stats.sketch import WindowSketch
from gateway.stats.verdict import Status, Verdict
from gateway.types import ModelKey


class Decoded(NamedTuple):
    """An entry of the stream and what it says."""

    entry: Entry
    log: LogEntry


@dataclass(slots=True)
class Held:
    """Rows of one version that are not committed yet, and this collector's committed part of the open window."""

    watched: Watched
    window: str
    base: WindowSketch
    delta: WindowSketch
    ids: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class Skipped:
    """Rows of a version that cannot be judged."""

    reason: str
    rows: int = 0
    ids: list[bytes] = field(default_factory=list)


class PredictionFolder:
    """Holds what was read of all models' prediction streams until `commit`."""

    def __init__(
        self,
        stats: StatsStore,
        catalog: Catalog,
        consumer: str,
        *,
        clock: Callable[[], float],
        new_suffix: Callable[[], str] = lambda: secrets.token_hex(4),
    ) -> None:
        self._stats = stats
        self._catalog = catalog
        self._consumer = consumer
        self._clock = clock
        self._new_suffix = new_suffix
        self._held: dict[ModelKey, Held] = {}
        self._skipped: dict[ModelKey, Skipped] = {}
        self._announced: set[ModelKey] = set()

    @property
    def held_rows(self) -> int:
        """Rows that wait for `commit`."""
        return sum(held.delta.rows for held in self._held.values())

    @property
    def held_entries(self) -> int:
        """Entries that wait for `commit`."""
        held = sum(len(held.ids) for held in self._held.values())
        return held + sum(len(skipped.ids) for skipped in self._skipped.values())

    def drop(self) -> None:
        """Forget everything; whoever reads the pending entries again brings it back."""
        self._held.clear()
        self._skipped.clear()
        self._announced.clear()

    async def fold(self, model: str, entries: Sequence[Entry]) -> None:
        """Take the rows of these entries; an entry that does not fit its manifest is set aside for good."""
        groups: dict[object, list[Decoded]] = {}
        for entry in entries:
            try:
                log = decode_for(model, entry)
            except MalformedEntry as error:
                await self._set_aside(model, entry, str(error))
                continue
            groups.setdefault((log.key, layout(log)), []).append(Decoded(entry, log))
        for group in groups.values():
            await self._fold_group(group[0].log.key, group)

    async def commit(self) -> None:
        """Write what is held and acknowledge it. Raises `NotOurs`; `drop` and read again."""
        for key, held in self._held.items():
            if held.ids:
                await self._commit_window(key, held)
        while self._skipped:
            key, skipped = next(iter(self._skipped.items()))
            await self._stats.skip(key.name, consumer=self._consumer, rows=skipped.rows, ids=skipped.ids)
            await self._announce(key, skipped)
            del self._skipped[key]

    async def _fold_group(self, key: ModelKey, group: Sequence[Decoded]) -> None:
        """One array operation for all entries of the same layout; one by one only to find those that do not fit."""
        known = self._catalog.get(key)
        if isinstance(known, Unwatched):
            skipped = self._skipped.setdefault(key, Skipped(known.reason))
            skipped.rows += sum(decoded.log.rows for decoded in group)
            skipped.ids += [decoded.entry.id for decoded in group]
            return
        held = await self._open(key, known)
        try:
            held.delta.update(columns_of(known.manifest, *stack([decoded.log for decoded in group])))
        except ValueError as error:
            if len(group) == 1:
                await self._set_aside(key.name, group[0].entry, str(error))
                return
            for decoded in group:
                await self._fold_group(key, [decoded])
        else:
            held.ids += [decoded.entry.id for decoded in group]

    async def _open(self, key: ModelKey, known: Watched) -> Held:
        """What is held of a version; at first, this consumer's part as the store has it."""
        held = self._held.get(key)
        if held is not None and held.watched is not known:
            # The version was published again with another reference; its rows so far belong to the old one.
            await self._commit_window(key, held)
            held = None
        if held is None:
            window, base = await self._stored_part(key, known)
            held = self._held[key] = Held(known, window, base, known.reference.empty())
        return held

    async def _stored_part(self, key: ModelKey, known: Watched) -> tuple[str, WindowSketch]:
        empty = known.reference.empty()
        part = await self._stats.part(key.name, key.version, self._consumer)
        if part is None:
            return "", empty
        try:
            empty.merge(from_bytes(part[1]))
        except ValueError:
            # Of another reference. Whoever closes the window says that it could not be judged.
            return "", known.reference.empty()
        return part[0], empty

    async def _commit_window(self, key: ModelKey, held: Held) -> None:
        now = self._clock()
        merged = held.base.merged(held.delta)
        window = await self._stats.commit_window(
            key.name,
            key.version,
            consumer=self._consumer,
            base=held.window,
            fresh=f"{now:.3f}-{self._new_suffix()}",
            merged=to_bytes(merged),
            delta=to_bytes(held.delta),
            rows=held.delta.rows,
            ids=held.ids,
            now=now,
        )
        held.base = merged if window.id == held.window else held.delta
        held.window = window.id
        held.delta = held.watched.reference.empty()
        held.ids = []

    async def _announce(self, key: ModelKey, skipped: Skipped) -> None:
        if key in self._announced:
            return
        now = self._clock()
        verdict = Verdict(
            model=key.name,
            version=key.version,
            status=Status.NO_REFERENCE,
            opened=now,
            closed=now,
            rows=skipped.rows,
            reasons=(skipped.reason,),
        )
        await self._stats.announce(verdict)
        self._announced.add(key)

    async def _set_aside(self, model: str, entry: Entry, reason: str) -> None:
        await self._stats.dead_letter(model, entry.stream, entry.id, entry.fields, reason)


def decode_for(model: str, entry: Entry) -> LogEntry:
    """An entry of this model's stream. Raises `MalformedEntry`."""
    log = decode(entry.fields)
    if log.key.name != model:
        raise MalformedEntry(f"an entry of model {log.key.name!r} in the stream of {model!r}")
    if not log.rows or not log.inputs:
        raise MalformedEntry("an entry without rows")
    return log

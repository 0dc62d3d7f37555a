"""Reads the request log backwards, without what is large in it and without disturbing the collectors' group."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from gateway.protocol.log_codec import META
from gateway.state import keys
from gateway.state.client import Store, store_errors

PAGE_ENTRIES = 16
"""Looked at in one call. An entry may have megabytes, which the store alone handles and not for long."""

# The numbers of the rows stay in the store.
_METAS = """
local metas, last = {}, ''
for _, entry in ipairs(redis.call('XREVRANGE', KEYS[1], ARGV[1], '-', 'COUNT', ARGV[2])) do
  last = entry[1]
  for i = 1, #entry[2], 2 do
    if entry[2][i] == ARGV[3] then metas[#metas + 1] = entry[2][i + 1] end
  end
end
return {last, metas}
"""


class LogReader:
    """The predictions of a model, newest first."""

    def __init__(self, store: Store) -> None:
        self._metas = store.register_script(_METAS)

    async def metas(self, model: str) -> AsyncGenerator[list[bytes]]:
        """The field `meta` of each entry, page by page, to the start of the stream. Raises `StoreUnavailable`."""
        end = b"+"
        while True:
            with store_errors():
                last, metas = await self._metas(keys=[keys.predictions(model)], args=[end, PAGE_ENTRIES, META])
            if not last:
                return
            yield metas
            end = b"(" + last

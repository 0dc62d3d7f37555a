"""Whether a call is tried again, and when. Decided without I/O: randomness and time come in as arguments.

A call is tried again after
1. an answer 429 or 503: the server says that it did not do it, whatever was asked;
2. a connection that could not be made: nothing was sent;
3. a connection that was lost before the answer: the request may have been processed, so only calls that do no harm
   when done twice are repeated (RFC 9110 section 9.2.2): all but `feedback`.

A timeout is never tried again, since the time that the caller gave is used up, and no other answer is, since it would
be the same.
"""

from __future__ import annotations

from gateway.client.errors import ConnectionLost, InferenceError, Unavailable, Unreachable

RETRIES = 2
MAX_WAIT_SECONDS = 10.0
"""Of waiting in one call, all tries together."""
BACKOFF_SECONDS = 0.1
"""At most this before the first retry without `Retry-After`, twice as much before each further one."""
MAX_BACKOFF_SECONDS = 2.0


class RetryBudget:
    """What one call may still spend on trying again."""

    def __init__(self, retries: int, max_wait: float, *, is_idempotent: bool) -> None:
        self._retries = retries
        self._left = max_wait
        self._is_idempotent = is_idempotent
        self._tries = 0

    def wait_after(self, error: InferenceError, jitter: float) -> float | None:
        """Seconds to wait before the next try; None if the error is final. `jitter` is a random number in [0, 1).

        Without `Retry-After` it is exponential backoff with full jitter (Brooker, "Exponential Backoff And Jitter",
        AWS Architecture Blog, 2015). A `Retry-After` beyond what is left is final: coming back earlier would be
        refused as well.
        """
        if self._tries == self._retries or not self._may_repeat(error):
            return None
        wait = error.retry_after
        if wait is None:
            wait = jitter * min(BACKOFF_SECONDS * 2**self._tries, MAX_BACKOFF_SECONDS)
        if wait > self._left:
            return None
        self._tries += 1
        self._left -= wait
        return wait

    def _may_repeat(self, error: InferenceError) -> bool:
        if isinstance(error, ConnectionLost):
            return self._is_idempotent
        return isinstance(error, Unavailable | Unreachable)

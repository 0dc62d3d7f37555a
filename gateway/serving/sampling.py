"""Which predictions of a batch are looked at more closely: a function of their ids, and of nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gateway.serving.call import Call
from gateway.types import Array


class Sample:
    """A share of all predictions. Of two samples the smaller is part of the larger."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._threshold = np.uint64(min(int(rate * 2**64), 2**64 - 1))

    def choose(self, calls: Sequence[Call], tags: Array) -> Sequence[Call]:
        """The sampled ones of `calls`; `tags` are those of their prediction ids."""
        if self.rate >= 1.0:
            return calls
        if len(calls) == 1:
            return calls if tags[0] < self._threshold else []
        return [calls[index] for index in np.flatnonzero(tags < self._threshold).tolist()]

from __future__ import annotations

from gateway.runtime.warming import warm


def test_every_size_that_may_occur_is_run() -> None:
    sizes: list[int] = []

    def run(rows: int) -> float:
        sizes.append(rows)
        return 0.0

    for batch_rows in (1, 2, 6, 8):
        warm(run, batch_rows)
    assert sizes == [1, 1, 2, 1, 2, 4, 6, 1, 2, 4, 8]


def test_a_model_that_refuses_made_up_values_is_asked_once() -> None:
    sizes: list[int] = []
    warm(sizes.append, 64)
    assert sizes == [1]

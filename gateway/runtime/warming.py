"""Nobody's first request pays for a size that was never run: all that may occur are run before a version is ready.

ONNX Runtime plans memory, and on CUDA loads and searches kernels, for each new shape.
"""

from __future__ import annotations

from gateway.runtime.tuning import Run, batch_sizes


def warm(run: Run, batch_rows: int) -> None:
    """Run each power of two of rows below `batch_rows`, and `batch_rows`, unless the model refuses made-up values."""
    for rows in batch_sizes(batch_rows):
        if run(rows) is None:
            return

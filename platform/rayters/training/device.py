"""Batches on their way to the device: the next one is copied while the present one is used.

    host     | fill pinned k+1 |                 | fill pinned k+2 |
    copies             |== k+1 ==|                         |== k+2 ==|        a CUDA stream of its own
    compute  |======= step k ========|======= step k+1 ========|             waits for its own copy only

Bytes travel in their stored dtype, a quarter of float32; normalisation and augmentation happen over there.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Arrays = Mapping[str, Any]
"""A batch of the stream: "views" (B, V, C, *S) as stored, "labels" (B, A, *S) uint8, "patch" (B,) int64 ..., as numpy arrays."""

Columns = dict[str, Tensor]
"""The same columns as tensors on a device."""


def on_device(batches: Iterable[Arrays], device: torch.device) -> Iterator[Columns]:
    """The batches on ``device``, in order; on CUDA one batch ahead of its use, elsewhere without a copy."""
    if device.type != "cuda":
        for batch in batches:
            yield {name: column.to(device) for name, column in _tensors(batch).items()}
        return
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: Columns | None = None
    for batch in batches:
        coming = _start_copy(batch, device, copies)
        if waiting is not None:
            yield _when_copied(waiting, device, copies)
        waiting = coming
    if waiting is not None:
        yield _when_copied(waiting, device, copies)


def _tensors(batch: Arrays) -> Columns:
    return {name: torch.from_numpy(np.ascontiguousarray(column)) for name, column in batch.items()}


def _start_copy(batch: Arrays, device: torch.device, copies: "torch.cuda.Stream") -> Columns:
    with torch.cuda.stream(copies):
        # torch keeps the pinned memory until the copy out of it is over
        pinned = {name: column.pin_memory() for name, column in _tensors(batch).items()}
        return {name: column.to(device, non_blocking=True) for name, column in pinned.items()}


def _when_copied(batch: Columns, device: torch.device, copies: "torch.cuda.Stream") -> Columns:
    compute = torch.cuda.current_stream(device)
    compute.wait_stream(copies)
    for column in batch.values():
        column.record_stream(compute)  # or the allocator would hand its memory to the next copy too early
    return batch

"""Batches on their way to the device: the next one is copied while the present one is used.

    host     | fill pinned k+1 |                 | fill pinned k+2 |
    copies             |== k+1 ==|                         |== k+2 ==|        a CUDA stream of its own
    compute  |======= step k ========|======= step k+1 ========|             waits for its own copy only

Bytes travel in their stored dtype, a quarter of float32; normalisation and augmentation happen over there.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rayters.patches.read import Block


@dataclass(frozen=True, kw_only=True)
class DeviceBatch:
    """A batch of the stream as tensors: views (B, V, C, *S) as stored, labels (B, A, *S) uint8, the rest int64."""

    views: Tensor
    labels: Tensor
    patch: Tensor
    case: Tensor
    origin_px0: Tensor


def on_device(batches: Iterable[Block], device: torch.device) -> Iterator[DeviceBatch]:
    """The batches on ``device``, in order; on CUDA one batch ahead of its use, elsewhere without a copy."""
    if device.type != "cuda":
        for batch in batches:
            yield DeviceBatch(**{name: torch.from_numpy(column).to(device) for name, column in batch.items()})
        return
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: DeviceBatch | None = None
    for batch in batches:
        coming = _start_copy(batch, device, copies)
        if waiting is not None:
            yield _when_copied(waiting, device, copies)
        waiting = coming
    if waiting is not None:
        yield _when_copied(waiting, device, copies)


def _start_copy(batch: Block, device: torch.device, copies: "torch.cuda.Stream") -> DeviceBatch:
    with torch.cuda.stream(copies):
        # torch keeps the pinned memory until the copy out of it is over
        pinned = {name: torch.from_numpy(column).pin_memory() for name, column in batch.items()}
        return DeviceBatch(**{name: column.to(device, non_blocking=True) for name, column in pinned.items()})


def _when_copied(batch: DeviceBatch, device: torch.device, copies: "torch.cuda.Stream") -> DeviceBatch:
    compute = torch.cuda.current_stream(device)
    compute.wait_stream(copies)
    for column in (batch.views, batch.labels, batch.patch, batch.case, batch.origin_px0):
        column.record_stream(compute)  # or the allocator would hand its memory to the next copy too early
    return batch

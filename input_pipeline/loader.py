"""Batches from any random-access source: shuffled, sharded by process, the same for any number of workers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

# Worker processes compose pictures with numpy and PIL; should one import JAX, it must not claim the accelerator.
_WORKER_ENV = {"JAX_PLATFORMS": "cpu"}


def _worker_init(index: int, count: int) -> None:
    del index, count
    os.environ.update(_WORKER_ENV)


def batches(
    source: Any,
    transforms: Sequence[grain.transforms.Map | grain.transforms.RandomMap],
    batch_size: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
    epochs: int | None = None,
    workers: int = 0,
    threads: int = 2,
    process: tuple[int, int] = (0, 1),
) -> grain.DatasetIterator:
    """Iterates over batches of a source.

    Records are shuffled, sharded and batched by index, before any worker is started: the batches do not depend on the
    number of workers, and `get_state` / `set_state` resume to the record.

    Args:
      source: `len(source)`, `source[i]`.
      transforms: applied to each record in turn; what they return must stack.
      batch_size: records of one batch on this process; an incomplete last batch is dropped when training (epochs
        None) and kept otherwise.
      seed: of the shuffle and of random transforms.
      epochs: None repeats without end.
      workers: processes that read ahead; 0 reads in `threads` threads of this one.
      process: (index, count) of this process; each sees every count-th record.
    """
    data = grain.MapDataset.source(source).seed(seed)
    if shuffle:
        data = data.shuffle(seed=seed)
    data = data.repeat(epochs) if epochs != 1 else data
    for transform in transforms:
        data = data.random_map(transform) if isinstance(transform, grain.transforms.RandomMap) else data.map(transform)
    index, count = process
    if count > 1:  # after the transforms, which grain seeds by index: processes must not draw the same numbers
        data = data[index::count]
    data = data.batch(batch_size, drop_remainder=epochs is None)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=8 if threads else 0)
    iterator = data.to_iter_dataset(options)
    if workers:
        iterator = iterator.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4), worker_init_fn=_worker_init
        )
    return iter(iterator)


def pad_rows(rows: np.ndarray, length: int, value: float = 0) -> np.ndarray:
    """Pads the first axis of an array to `length` with `value`, or cuts it there."""
    rows = np.asarray(rows)[:length]
    return np.pad(rows, [(0, length - len(rows))] + [(0, 0)] * (rows.ndim - 1), constant_values=value)

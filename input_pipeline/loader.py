"""Batches from any random-access source: shuffled, sharded by process, the same for any number of workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.sets.bad_records import BadRecordLog

# Worker processes compose pictures with numpy and PIL; should one import JAX, it must not claim the accelerator.
_WORKER_ENV = {"JAX_PLATFORMS": "cpu"}


def _worker_init(index: int, count: int) -> None:
    del index, count
    os.environ.update(_WORKER_ENV)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to a group of processes: a run saves first, its workers last
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends a worker whose process was killed: it would wait for ever for room in its queue."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


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
    start: int = 0,
) -> grain.DatasetIterator:
    """Iterates over batches of a source.

    Records are shuffled, sharded and batched by index, before any worker is started: the batches do not depend on the
    number of workers nor, all processes' taken together, on the number of processes. `start` goes on anywhere.

    Args:
      source: `len(source)`, `source[i]`.
      transforms: applied to each record in turn; what they return must stack.
      batch_size: records of one batch on this process; an incomplete last batch is dropped when training (epochs
        None) and kept otherwise.
      seed: of the shuffle and of random transforms.
      epochs: None repeats without end.
      workers: processes that read ahead; 0 reads in `threads` threads of this one.
      process: (index, count) of this process; each sees every count-th record.
      start: the batches to leave out at the beginning.
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
    data = data[start:] if start else data
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=8 if threads else 0)
    iterator = data.to_iter_dataset(options)
    if workers:
        iterator = iterator.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4), worker_init_fn=_worker_init
        )
    return iter(iterator)


class _Reported(grain.sources.RandomAccessDataSource):
    """A source whose bad records come as the error that they raise, for who reads them in order."""

    def __init__(self, source: Any):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        return repr(self.source)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.source[index]
        except UserError as error:
            return error


def records(
    source: Any,
    transforms: Sequence[grain.transforms.Map],
    bad_records: BadRecordLog,
    *,
    threads: int = 2,
    process: tuple[int, int] = (0, 1),
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[dict[str, Any]]:
    """The good records of a source, once and in order, read ahead in threads; for evaluation.

    Args:
      source, process: as in `batches`. bad_records: takes the bad ones.
      progress: called with the number of records read.
    """
    data = grain.MapDataset.source(_Reported(source))
    for transform in transforms:
        data = data.map(lambda record, own=transform: record if isinstance(record, UserError) else own.map(record))
    index, count = process
    data = data[index::count] if count > 1 else data
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=8 if threads else 0)
    record: Any  # what the transforms make of it
    for done, record in enumerate(data.to_iter_dataset(options), 1):
        if isinstance(record, UserError):
            bad_records.add(record)
        else:
            yield record
        progress(done)


def pad_rows(rows: np.ndarray, length: int, value: float = 0) -> np.ndarray:
    """Pads the first axis of an array to `length` with `value`, or cuts it there."""
    rows = np.asarray(rows)[:length]
    return np.pad(rows, [(0, length - len(rows))] + [(0, 0)] * (rows.ndim - 1), constant_values=value)
